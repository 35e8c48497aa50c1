"""Which runs a comparison is made of, and the file that each leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from laco_deploy.model.merger_spec import MergerKind, MergerShortcut, MergerSpec
from laco_deploy.training.compare.settings import Budget
from laco_deploy.training.evaluation import Score
from laco_runtimes.errors import DataError

METHODS: tuple[tuple[MergerKind, MergerShortcut | None], ...] = (
    ("laco", None),
    ("pixel_shuffle", None),
    ("pixel_shuffle", "window_mean"),
    ("ldpv2", None),
    ("token_packer", None),
    ("avg_pool", None),
)
"""Kind, and a shortcut other than the kind's own."""

RATE_STUDIES: Mapping[str, tuple[tuple[MergerKind, MergerShortcut | None], ...]] = MappingProxyType(
    {
        "slow_merger": METHODS[:5],  # average pooling learns nothing
        "forgotten_merger": METHODS[:3],
        "literal": METHODS[:2],
        "literal_slow_merger": METHODS[:2],
    }
)
"""Which methods run under which other plan of rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run."""

    kind: MergerKind | None
    """None is the model without a merger, trained on."""
    shortcut: MergerShortcut | None = None
    after_block: int = 0
    rates: str = "scaled"
    """Name of a rate plan of the budget."""
    seed: int

    @property
    def method(self) -> str:
        """Kind and shortcut, as the tables name them."""
        if self.kind is None:
            return "no merger"
        return f"{self.kind} + shortcut" if self.shortcut == "window_mean" else self.kind

    @property
    def name(self) -> str:
        """Of its file."""
        method = self.method.replace(" + ", "-").replace(" ", "-")
        place = f"-after-{self.after_block}" if self.kind else ""
        return f"{method}{place}-{self.rates.replace('_', '-')}-seed-{self.seed}"

    @property
    def mergers(self) -> tuple[MergerSpec, ...]:
        """For the configuration of its model."""
        if self.kind is None:
            return ()
        return (MergerSpec(kind=self.kind, after_block=self.after_block, shortcut=self.shortcut),)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What a run left."""

    cell: Cell
    scores: tuple[Score, ...]
    before: tuple[Score, ...]
    """Right after the merger was put in, on a part of the test pictures."""
    losses: tuple[tuple[int, float], ...]
    """(step over both stages, mean loss since the entry before)."""
    cpu_seconds: float
    """Processor time of training, one thread: other programs on the machine do not count."""
    total_cpu_seconds: float
    """The same with the test."""
    encoder_operations: int
    prefill_operations: int
    visual_tokens: int
    merger_parameters: int

    def accuracy(self, group: str | None = None) -> float:
        """Exact match over a group of pictures or all, every question counting the same."""
        chosen = [score for score in self.scores if group in (None, score.group)]
        return sum(score.correct for score in chosen) / sum(score.total for score in chosen)


def method_names(
    methods: Iterable[tuple[MergerKind, MergerShortcut | None]],
) -> tuple[str, ...]:
    """As the tables name them."""
    return tuple(Cell(kind=k, shortcut=s, after_block=1, seed=0).method for k, s in methods)


def plan(budget: Budget) -> list[Cell]:
    """All runs, seed by seed, so that an unfinished comparison still compares all methods."""
    return [cell for seed in budget.seeds for cell in _of_seed(budget, seed)]


def _of_seed(budget: Budget, seed: int) -> Iterator[Cell]:
    quarter = budget.recipe.after_block
    for kind, shortcut in METHODS:
        yield Cell(kind=kind, shortcut=shortcut, after_block=quarter, seed=seed)
    yield Cell(kind=None, seed=seed)
    for place in budget.positions:
        if place != quarter:
            yield Cell(kind="laco", after_block=place, seed=seed)
    for rates, methods in RATE_STUDIES.items():
        if rates.startswith("literal") and seed not in budget.literal_seeds:
            continue
        for kind, shortcut in methods:
            yield Cell(kind=kind, shortcut=shortcut, after_block=quarter, rates=rates, seed=seed)


def result_path(root: Path, cell: Cell) -> Path:
    """Where the result of a cell lies."""
    return root / "cells" / f"{cell.name}.json"


def write_result(root: Path, result: CellResult, digest: str) -> None:
    """Write the file of a cell, whole or not at all."""
    path = result_path(root, result.cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"digest": digest} | asdict(result), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_result(path: Path, digest: str) -> CellResult:
    """Read the file of a cell.

    Raises:
        DataError: it is damaged, or was made with other settings.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made_with = values.pop("digest")
        cell = Cell(**values.pop("cell"))
        scores, before = (
            tuple(Score(**score) for score in values.pop(key)) for key in ("scores", "before")
        )
        losses = tuple((int(step), float(loss)) for step, loss in values.pop("losses"))
        result = CellResult(cell=cell, scores=scores, before=before, losses=losses, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is no result of a cell. Delete it and run again.") from error
    if made_with != digest:
        raise DataError(
            f"'{path}' was made with other settings. Choose another folder for this budget."
        )
    return result


def read_results(root: Path, digest: str) -> list[CellResult]:
    """All results under `root`, in the order of their names.

    Raises:
        DataError: one of them is damaged, or was made with other settings.
    """
    return [read_result(path, digest) for path in sorted((root / "cells").glob("[!.]*.json"))]


__all__ = [
    "METHODS",
    "RATE_STUDIES",
    "Cell",
    "CellResult",
    "method_names",
    "plan",
    "read_result",
    "read_results",
    "result_path",
    "write_result",
]
