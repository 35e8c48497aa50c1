"""Which picture is made for which task, and which of its questions are asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from laco_deploy.training.data.groups import GROUPS, TRAIN_WEIGHTS
from laco_deploy.training.data.scene import SPLITS, Question, Scene, Split, draw, pick

MIN_TURNS = 3
MAX_TURNS = 6
_ORDER_STREAM = 10
"""Random streams: [seed, split, picture] paints a picture, [seed, 10 + split] orders a split."""


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to make."""

    split: Split
    index: int
    group: str
    task: str

    @property
    def name(self) -> str:
        """Path of the picture inside the data set."""
        return f"images/{self.split}/{self.index:06d}.png"


def picture_rng(seed: int, job: Job) -> np.random.Generator:
    """The random stream of one picture: no matter which process makes it, or after which other."""
    return np.random.default_rng([seed, SPLITS.index(job.split), job.index])


def share(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to `weights` that add up to `total` (largest remainder)."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def plan_split(seed: int, split: Split, count: int, groups: Sequence[str]) -> list[Job]:
    """The pictures of a split in their order.

    Train goes by `TRAIN_WEIGHTS`; in val and test all tasks are equally frequent.
    """
    wanted: list[tuple[str, str]] = []
    if split == "train":
        for group, number in zip(
            groups, share(count, [TRAIN_WEIGHTS[g] for g in groups]), strict=True
        ):
            wanted += [(group, task) for task in islice(cycle(GROUPS[group].train_tasks), number)]
    else:
        wanted += islice(
            cycle([(group, task) for group in groups for task in GROUPS[group].tasks]), count
        )
    order = np.random.default_rng([seed, _ORDER_STREAM + SPLITS.index(split)]).permutation(count)
    return [Job(split, index, *wanted[int(place)]) for index, place in enumerate(order)]


def ask(rng: np.random.Generator, scene: Scene, job: Job) -> list[Question]:
    """The questions of one picture.

    One is of the job's task; in train it stands among others, in random order.
    """
    first = pick(rng, [question for question in scene.questions if question.task == job.task])
    if job.split != "train":
        return [first]
    others = [question for question in scene.questions if question is not first]
    most = min(MAX_TURNS, len(scene.questions))
    turns = int(rng.integers(min(MIN_TURNS, most), most + 1))
    chosen = [first, *draw(rng, others, turns - 1)]
    return draw(rng, chosen, len(chosen))


def conversation(rng: np.random.Generator, questions: Sequence[Question]) -> list[dict[str, str]]:
    """Turns in the format of LLaVA: `<image>` and a line break before the first prompt only."""
    turns: list[dict[str, str]] = []
    for question in questions:
        lead = "" if turns else "<image>\n"
        turns.append({"from": "human", "value": lead + pick(rng, question.prompts)})
        turns.append({"from": "gpt", "value": question.answer})
    return turns
