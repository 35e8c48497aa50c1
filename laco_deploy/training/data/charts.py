"""Bar charts with labelled bars and a numbered axis."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from laco_deploy.training.data import fonts
from laco_deploy.training.data.colors import COLORS, RGB, neutral_paper, plain
from laco_deploy.training.data.fonts import load_font
from laco_deploy.training.data.scene import Question, Scene, Split, draw, pick

LABELS = "ABCD"
TICKS = (0, 3, 6, 9)
TOP_VALUE = 9

HIGHEST = (
    "Which bar is the highest?",
    "What is the label of the highest bar?",
    "Which bar has the largest value?",
)
VALUE_OF = (
    "What is the value of {label}?",
    "How high is bar {label}?",
    "What value does {label} have?",
)
COUNT = ("How many bars are there?", "How many bars do you see?", "Count the bars.")


@dataclass(frozen=True, slots=True)
class Look:
    """Free choices of a chart, in pixels."""

    font: str
    paper: RGB
    colors: list[RGB]
    left: int
    right: int
    top: int
    bottom: int
    fill: float
    """Part of its slot that a bar fills."""


class ChartScenes:
    """Two to four bars with whole values from 1 to 9, of which one is the highest."""

    tasks = ("highest_bar", "bar_value", "count_bars")
    train_tasks = ("highest_bar", "bar_value", "bar_value", "count_bars")
    source = f"drawn by laco-deploy; {fonts.SOURCE}"

    def render(self, rng: np.random.Generator, split: Split, canvas: int, task: str) -> Scene:
        """One chart; all three tasks fit every chart."""
        values = _values(rng, int(rng.integers(2, len(LABELS) + 1)))
        labels = LABELS[: len(values)]
        highest = labels[values.index(max(values))].lower()
        questions = [
            Question("highest_bar", HIGHEST, highest),
            Question("count_bars", COUNT, str(len(values))),
        ]
        for label, value in zip(labels, values, strict=True):
            prompts = tuple(prompt.format(label=label) for prompt in VALUE_OF)
            questions.append(Question("bar_value", prompts, str(value)))
        return Scene(_paint(_look(rng, canvas, len(values)), canvas, values), tuple(questions))


def _values(rng: np.random.Generator, count: int) -> list[int]:
    while True:
        values = [int(v) for v in rng.integers(1, TOP_VALUE + 1, count)]
        if values.count(max(values)) == 1:
            return values


def _look(rng: np.random.Generator, canvas: int, count: int) -> Look:
    def pixels(low: float, high: float) -> int:
        return round(rng.uniform(low, high) * canvas)

    return Look(
        font=pick(rng, ("DejaVuSans", "DejaVuSans-Bold")),
        paper=neutral_paper(rng),
        colors=[COLORS[name] for name in draw(rng, tuple(COLORS), count)],
        left=pixels(0.14, 0.20),
        right=canvas - pixels(0.02, 0.08),
        top=pixels(0.06, 0.14),
        bottom=canvas - pixels(0.15, 0.20),
        fill=rng.uniform(0.55, 0.8),
    )


def _paint(look: Look, canvas: int, values: list[int]) -> Image.Image:
    light = sum(look.paper) > 3 * 127
    ink: RGB = (25, 25, 25) if light else (235, 235, 235)
    grid: RGB = (190, 190, 190) if light else (85, 85, 85)
    image = plain(canvas, look.paper)
    pen = ImageDraw.Draw(image)
    line = max(1, round(canvas / 84))
    unit = (look.bottom - look.top) / TOP_VALUE  # pixels per value
    tick_font = load_font(look.font, round(0.115 * canvas))
    for tick in TICKS:
        y = round(look.bottom - tick * unit)
        pen.rectangle((look.left, y, look.right, y + line - 1), fill=grid)
        pen.text((look.left - 0.03 * canvas, y), str(tick), font=tick_font, fill=ink, anchor="rm")
    label_font = load_font("DejaVuSans-Bold", round(0.125 * canvas))
    slot = (look.right - look.left) / len(values)
    for index, value in enumerate(values):
        middle = look.left + (index + 0.5) * slot
        half = slot * look.fill / 2
        box = (
            round(middle - half),
            round(look.bottom - value * unit),
            round(middle + half),
            look.bottom,
        )
        pen.rectangle(box, fill=look.colors[index])
        pen.text(
            (middle, look.bottom + 0.03 * canvas),
            LABELS[index],
            font=label_font,
            fill=ink,
            anchor="mt",
        )
    pen.rectangle((look.left - line, look.top, look.left, look.bottom), fill=ink)
    pen.rectangle((look.left - line, look.bottom, look.right, look.bottom + line), fill=ink)
    return image
