"""Means over seeds, and differences between runs of the same seed, with how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from laco_deploy.training.compare.cells import CellResult

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided 95 %, for 1 to 9 degrees of freedom."""
_T_MANY = 1.96


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds, and the standard deviation between them (None for one seed)."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        seen = tuple(values)
        deviation = statistics.stdev(seen) if len(seen) > 1 else None
        return cls(statistics.fmean(seen), deviation, seen)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference of pairs of the same seed, with its 95 % confidence interval.

    The interval says how far the seeds of the cells move it. It knows nothing of another
    pretrained model, other pictures or longer training.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero; never with one pair."""
        return self.low > 0 or self.high < 0

    @classmethod
    def of(cls, differences: Sequence[float]) -> Difference:
        """Of at least one difference; one alone could be anything, so its interval is endless."""
        mean, pairs = statistics.fmean(differences), len(differences)
        if pairs < 2:
            return cls(mean, -math.inf, math.inf, pairs)
        t = T_95[pairs - 2] if pairs - 2 < len(T_95) else _T_MANY
        half = t * statistics.stdev(differences) / math.sqrt(pairs)
        return cls(mean, mean - half, mean + half, pairs)


Rows = Mapping[int, CellResult]
"""The results of one setting by seed."""


def accuracy(rows: Rows, group: str | None = None) -> Spread:
    """Exact match over the seeds."""
    return Spread.of(row.accuracy(group) for _, row in sorted(rows.items()))


def difference(first: Rows, second: Rows, group: str | None = None) -> Difference | None:
    """Exact match of `first` less that of `second`; None where they share no seed."""
    shared = sorted(set(first) & set(second))
    if not shared:
        return None
    return Difference.of(
        [first[seed].accuracy(group) - second[seed].accuracy(group) for seed in shared]
    )


def growth(
    first: Rows, second: Rows, third: Rows, fourth: Rows, group: str | None = None
) -> Difference | None:
    """(first - second) - (third - fourth): how much larger one difference is than another."""
    shared = sorted(set(first) & set(second) & set(third) & set(fourth))
    if not shared:
        return None
    values = [
        [rows[seed].accuracy(group) for rows in (first, second, third, fourth)] for seed in shared
    ]
    return Difference.of([(a - b) - (c - d) for a, b, c, d in values])


__all__ = ["Difference", "Rows", "Spread", "accuracy", "difference", "growth"]
