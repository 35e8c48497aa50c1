"""What a group of pictures must offer: render one scene, and say what can be asked about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a scene.

    `prompts` are phrasings of the same question. `answer` is the only right one: lower-case, one to
    three words or a number.
    """

    task: str
    prompts: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture (RGB, canvas x canvas pixels) and all that may be asked about it."""

    image: Image.Image
    questions: tuple[Question, ...]


class SceneMaker(Protocol):
    """A group of pictures. Makers hold no state, so any worker process can render any picture."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of this group; every one gets the same number of val and test pictures."""

    @property
    def train_tasks(self) -> tuple[str, ...]:
        """Tasks that train pictures are made for, in turn; one named twice gets twice as many."""

    @property
    def source(self) -> str:
        """Where the content comes from and under which licence, for `dataset.json`."""

    def render(self, rng: np.random.Generator, split: Split, canvas: int, task: str) -> Scene:
        """Draw a scene with at least two questions, of which at least one is of `task`."""


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely (`rng.choice` would turn them into numpy values)."""
    return options[int(rng.integers(len(options)))]


def draw(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """`count` different options in random order."""
    return [options[int(index)] for index in rng.permutation(len(options))[:count]]
