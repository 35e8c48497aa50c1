"""Samples as the graphs take them: pixels in one file, token ids and how long an answer may be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from laco_export.protocols import Floats
from laco_runtimes.errors import ContextLengthError
from laco_runtimes.manifest import TOKENIZER_NAME
from laco_runtimes.newline import read_vector
from laco_runtimes.prompt import check_prompt, encode_text, load_tokenizer
from laco_runtimes.tiling import Size, TokenLayout
from laco_runtimes.visual import arrange_tiles, pixel_values, read_visuals

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
    size: Size
    """(height, width) of the image in pixels."""
    tiles: int
    """Of the image."""


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """All questions; it can be handed to another process, for the pixels stay in files."""

    questions: tuple[Question, ...]
    answered: tuple[int, ...]
    """Which of them are also answered, not only looked at."""
    places: tuple[int, ...]
    """Numbers of the images of the questions, in the names of their files."""
    folder: Path
    """Tiles of each image, `<number>.npy` [tiles, S, S, 3] of uint8."""
    root: Path
    """The bundle that is being written."""
    job: ExportJob

    def squares(self, index: int) -> NDArray[np.uint8]:
        """Tiles of one image, [tiles, S, S, 3]."""
        squares: NDArray[np.uint8] = np.load(
            self.folder / f"{self.places[index]}.npy", allow_pickle=False
        )
        return squares

    def pixel_values(self, index: int) -> Floats:
        """Of one image, [tiles, 3, S, S]."""
        return pixel_values(self.squares(index), self.job.preprocessing)

    def arranged(self, index: int, features: Floats) -> Floats:
        """Features of the tiles of one image, [tiles, N', D], as its visual tokens, [tokens, D]."""
        layout = token_layout(self.job)
        newline = None
        if layout.newline:
            newline = read_vector(self.root, self.job.language.hidden_size)
        return arrange_tiles(features, self.questions[index].size, layout, newline)

    @property
    def tile_names(self) -> list[str]:
        """For every tile of every image in turn, the name of its question."""
        return [one.name for one in self.questions for _ in range(one.tiles)]

    def rows(self, index: int) -> slice:
        """Where the tiles of an image stand among those of all."""
        start = sum(one.tiles for one in self.questions[:index])
        return slice(start, start + self.questions[index].tiles)

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


def token_layout(job: ExportJob) -> TokenLayout:
    """How the tokens of tiles become visual tokens in the model as trained."""
    return TokenLayout(
        image_size=job.vision.image_size,
        merged_grid=job.variants[0].merged_grid,
        image_mode=job.layout.image_mode,
        max_tiles=job.layout.max_tiles,
        newline=job.layout.newline,
        video_pool_stride=job.layout.video_pool_stride,
    )


def prepare(job: ExportJob, root: Path, folder: Path) -> QuestionSet:
    """Pixels and token ids of every sample, made by the code that the runtime uses.

    Args:
        job: its samples and its plan.
        root: the bundle that is being written; holds the tokenizer.
        folder: where to write the tiles; made.

    Raises:
        ImageError: an image that cannot be read.
        ArgumentError: an empty prompt.
        ContextLengthError: no room for an answer behind a prompt.
    """
    encoder = load_tokenizer(root / TOKENIZER_NAME)
    layout = token_layout(job)
    folder.mkdir(exist_ok=True)
    questions = []
    for index, sample in enumerate(job.parity_samples):
        text = encode_text(encoder, check_prompt(sample.prompt))
        [part] = read_visuals([sample.image], job.preprocessing, layout)
        turn = job.prompt.turn(text, [part.tokens])
        ids = (*job.prompt.system, *turn)
        room = job.language.max_positions - len(ids)
        if room < 1:
            raise ContextLengthError(
                f"the prompt about {sample.name} takes {len(ids)} tokens, and the model holds "
                f"{job.language.max_positions}, answer included. "
                "Ask a shorter question, or about a smaller image."
            )
        np.save(folder / f"{index}.npy", part.squares, allow_pickle=False)
        questions.append(
            Question(
                name=sample.name,
                ids=ids,
                tokens=min(job.plan.tokens, room),
                adversarial=sample.adversarial,
                size=part.size,
                tiles=part.tiles,
            )
        )
    count = len(questions)
    return QuestionSet(
        questions=tuple(questions),
        answered=spread(count, job.plan.answered),
        places=tuple(range(count)),
        folder=folder,
        root=root,
        job=job,
    )


def spread(count: int, wanted: int | None) -> tuple[int, ...]:
    """`wanted` of `count` numbers, evenly apart, the first and the last among them."""
    if wanted is None or wanted >= count:
        return tuple(range(count))
    return tuple(dict.fromkeys(np.linspace(0, count - 1, wanted).round().astype(int).tolist()))


__all__ = ["Question", "QuestionSet", "prepare", "spread", "token_layout"]
