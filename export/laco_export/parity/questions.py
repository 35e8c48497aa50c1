"""Samples as the graphs take them: pixels in one file, token ids and how long an answer may be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from laco_export.protocols import Floats
from laco_runtimes.errors import ContextLengthError
from laco_runtimes.images import load_image, normalise, resize_square
from laco_runtimes.prompt import check_prompt, encode_text, load_tokenizer

if TYPE_CHECKING:  # a job holds a plan of this package
    from laco_export.job import ExportJob


@dataclass(frozen=True, slots=True)
class Question:
    """One image and one prompt."""

    name: str
    ids: tuple[int, ...]
    """Of the whole prompt, image tokens in their places."""
    tokens: int
    """Length of the answer that is compared."""
    adversarial: bool


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """All questions; it can be handed to another process, for the pixels stay in a file."""

    questions: tuple[Question, ...]
    answered: tuple[int, ...]
    """Which of them are also answered, not only looked at."""
    places: tuple[int, ...]
    """Where the image of each question stands in the file."""
    file: Path
    """Squared images, `.npy` [images, S, S, 3] of uint8."""
    job: ExportJob

    def square(self, index: int) -> NDArray[np.uint8]:
        """One image, [S, S, 3]."""
        squares = np.load(self.file, mmap_mode="r", allow_pickle=False)
        return np.asarray(squares[self.places[index]])

    def pixel_values(self, index: int) -> Floats:
        """Of one image, [1, 3, S, S]."""
        return normalise(self.square(index), self.job.preprocessing)[None]

    def some(self, count: int) -> QuestionSet:
        """`count` of those that are answered, evenly apart."""
        picked = [self.answered[place] for place in spread(len(self.answered), count)]
        return replace(
            self,
            questions=tuple(self.questions[index] for index in picked),
            answered=tuple(range(len(picked))),
            places=tuple(self.places[index] for index in picked),
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest answer; 0 without any."""
        return max((self.questions[index].tokens for index in self.answered), default=0)


def prepare(job: ExportJob, tokenizer: Path, file: Path) -> QuestionSet:
    """Pixels and token ids of every sample, made by the code that the runtime uses.

    Args:
        job: its samples and its plan.
        tokenizer: `tokenizer.json`.
        file: where to write the squared images.

    Raises:
        ImageError: an image that cannot be read.
        ArgumentError: an empty prompt.
        ContextLengthError: no room for an answer behind a prompt.
    """
    encoder = load_tokenizer(tokenizer)
    side = job.preprocessing.image_size
    questions = []
    squares = np.empty((len(job.parity_samples), side, side, 3), np.uint8)
    for index, sample in enumerate(job.parity_samples):
        text = encode_text(encoder, check_prompt(sample.prompt))
        turn = job.prompt.turn(text, [job.variants[0].tokens_per_tile])
        ids = (*job.prompt.system, *turn)
        room = job.language.max_positions - len(ids)
        if room < 1:
            raise ContextLengthError(
                f"the prompt about {sample.name} takes {len(ids)} tokens, and the model holds "
                f"{job.language.max_positions}, answer included. Ask a shorter question."
            )
        squares[index] = resize_square(load_image(sample.image), side)
        questions.append(Question(sample.name, ids, min(job.plan.tokens, room), sample.adversarial))
    np.save(file, squares, allow_pickle=False)
    count = len(questions)
    return QuestionSet(
        tuple(questions), spread(count, job.plan.answered), tuple(range(count)), file, job
    )


def spread(count: int, wanted: int | None) -> tuple[int, ...]:
    """`wanted` of `count` numbers, evenly apart, the first and the last among them."""
    if wanted is None or wanted >= count:
        return tuple(range(count))
    return tuple(dict.fromkeys(np.linspace(0, count - 1, wanted).round().astype(int).tolist()))


__all__ = ["Question", "QuestionSet", "prepare", "spread"]
