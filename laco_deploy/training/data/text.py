"""One word, set in a real font: read it, name its first letter, count its letters."""

import numpy as np
from PIL import ImageDraw

from laco_deploy.training.data import fonts
from laco_deploy.training.data.colors import background, ink_and_paper
from laco_deploy.training.data.fonts import FONTS, load_font, text_size
from laco_deploy.training.data.scene import Question, Scene, Split, pick
from laco_deploy.training.data.words import WORDS

READ_WORD = ("What word is this?", "Which word do you see?", "Read the word.")
FIRST_LETTER = (
    "What is the first letter?",
    "Which letter comes first?",
    "What letter does the word start with?",
)
COUNT_LETTERS = (
    "How many letters are there?",
    "How many letters does the word have?",
    "Count the letters.",
)

MAX_HEIGHT = 0.6
_MEASURE_AT = 200


class TextScenes:
    """A word of three to six letters.

    All splits share the list of words: held out is only how a word is set, not which word.
    """

    tasks = ("read_word", "first_letter", "count_letters")
    train_tasks = tasks
    source = fonts.SOURCE

    def render(self, rng: np.random.Generator, split: Split, canvas: int, task: str) -> Scene:
        """One word of `WORDS`; all three tasks fit every word."""
        word, name = pick(rng, WORDS), pick(rng, FONTS)
        width, height = text_size(name, _MEASURE_AT, word)
        part = rng.uniform(
            0.60 + 0.05 * (len(word) - 3), 0.94
        )  # letters of long words must not get tiny
        scale = min(part / width, MAX_HEIGHT / height)  # canvases per pixel measured
        font = load_font(name, int(_MEASURE_AT * scale * canvas))
        left, top, right, bottom = font.getbbox(word)
        ink, paper = ink_and_paper(rng)
        image = background(rng, canvas, paper)
        play_x = max(0.0, (canvas - (right - left)) / 2 - 0.03 * canvas)
        play_y = min(0.2 * canvas, (canvas - (bottom - top)) / 2 - 0.03 * canvas)
        x = (canvas - right - left) / 2 + rng.uniform(-play_x, play_x)
        y = (canvas - bottom - top) / 2 + rng.uniform(-play_y, play_y)
        ImageDraw.Draw(image).text((x, y), word, font=font, fill=ink)
        return Scene(
            image,
            (
                Question("read_word", READ_WORD, word),
                Question("first_letter", FIRST_LETTER, word[0]),
                Question("count_letters", COUNT_LETTERS, str(len(word))),
            ),
        )
