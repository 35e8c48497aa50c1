"""The results sorted into the paper's experiments, and what the paper found in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from laco_deploy.training.compare.cells import METHODS, CellResult, method_names
from laco_deploy.training.compare.settings import Budget
from laco_deploy.training.compare.statistics import Rows
from laco_deploy.training.evaluation import Score

PAPER_METHODS: Mapping[str, float] = MappingProxyType(
    {"laco": 53.1, "pixel_shuffle": 36.4, "ldpv2": 36.0, "token_packer": 36.1}
)
"""Paper table 1, average over ten benchmarks, single-image training, percent."""
PAPER_POSITIONS: Mapping[str, float] = MappingProxyType(
    {"1/12": 50.3, "1/6": 48.5, "1/4": 53.1, "1/2": 54.9, "1": 56.0}
)
"""Paper table 8, the same average, by the share of the blocks in front of the merger."""
PAPER_TUNING_HOURS: Mapping[str, float] = MappingProxyType(
    {"1/12": 18.0, "1/6": 18.5, "1/4": 19.3, "1/2": 20.0, "1": 25.8}
)
"""Paper table 8, IT, the time of instruction tuning (no unit is given)."""


@dataclass(frozen=True, slots=True)
class Studies:
    """Results by setting, each by seed."""

    budget: Budget
    results: tuple[CellResult, ...]
    pretraining: Mapping[str, Any]
    """The record of the pretrained model."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of pictures, in the order of the recipe."""
        return self.budget.recipe.groups

    def rows(self, method: str, *, after_block: int | None = None, rates: str = "scaled") -> Rows:
        """Results of a setting by seed, a quarter of the blocks in front unless said otherwise."""
        quarter = self.budget.recipe.after_block
        place = quarter if after_block is None else after_block
        return {
            result.cell.seed: result
            for result in self.results
            if result.cell.method == method
            and result.cell.rates == rates
            and (result.cell.kind is None or result.cell.after_block == place)
        }

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the merging methods, in the order of the tables."""
        return method_names(METHODS)

    def share(self, after_block: int) -> str:
        """A place as the paper names it: 3 of 12 blocks are `1/4`."""
        return str(Fraction(after_block, self.budget.recipe.vision_blocks))

    def reference(self, key: str) -> tuple[Score, ...]:
        """Scores of the pretraining record: `test` of the model, `guesses` without a model."""
        return tuple(Score(**score) for score in self.pretraining[key])


def share_right(scores: Iterable[Score], group: str | None = None) -> float:
    """Exact match over a group or all."""
    chosen = [score for score in scores if group in (None, score.group)]
    return sum(score.correct for score in chosen) / sum(score.total for score in chosen)


__all__ = [
    "PAPER_METHODS",
    "PAPER_POSITIONS",
    "PAPER_TUNING_HOURS",
    "Studies",
    "share_right",
]
