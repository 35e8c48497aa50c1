"""From samples to ratios, and the two laws they are held against.

Affine law: VT(k) = a + b k/L over LaCo's places (the paper's own figures follow it, R² = 0.9998).
Theory and one constant: VT(k) = c + s T(k), where T are operations over those of LaCo@1: what is
not proportional to the encoder's work (transfers, launches, projector) is c.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samples.paper_tables import paper
from samples.paper_tables.cells import Cell, theory
from samples.paper_tables.record import Sample, pairs


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell; all ratios are to LaCo@1 of the same encoder."""

    encoder: str
    variant: str
    tables: str | None
    """Numbers of the paper's tables that have it."""
    after_block: int
    depth: float
    """k / L."""
    gflop: float
    rounds: int
    vision_ms: Spread
    tokens_per_second: Spread
    vision_ratio: Spread
    tokens_ratio: Spread
    vision_theory: float
    """Operations from pixels to visual tokens."""
    tokens_theory: float
    """If only VT changed, and by theory: the language model sees as many tokens in every cell."""
    vision_paper: tuple[float, ...] | None
    """By training setting; None where the paper has no such cell."""
    tokens_paper: tuple[float, ...] | None


LAW_POINTS, LAW_R_SQUARED = 6.0, 0.99
"""How near the measured places must lie to both laws: points of VT(1), and R²."""


@dataclass(frozen=True, slots=True)
class Line:
    """A least-squares line through ratios of VT."""

    constant: float
    slope: float
    r_squared: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Laws:
    """Of LaCo's places on one encoder."""

    encoder: str
    affine: Line
    """Over k / L."""
    with_constant: Line
    """Over T(k)."""
    worst_points: float
    """Largest distance of VT(k)/VT(1) from `with_constant`, in points (hundredths of VT(1))."""
    constant_ms: float
    """c in milliseconds; negative where time falls faster than operations do."""

    @property
    def met(self) -> bool:
        """Whether both laws hold as nearly as `LAW_POINTS` and `LAW_R_SQUARED` ask."""
        return self.worst_points <= LAW_POINTS and self.affine.r_squared >= LAW_R_SQUARED


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    low, high = np.percentile(values, [10, 90])
    return Spread(statistics.median(values), float(low), float(high))


def rows(
    cells: Sequence[Cell], reference: Cell, samples: Mapping[str, Sequence[Sample]]
) -> list[Row]:
    """One for every cell that has a round together with LaCo@1.

    Args:
        cells: of one encoder.
        reference: LaCo@1.
        samples: by name of the cell.
    """
    in_theory = theory(cells, reference)
    found = []
    for cell in cells:
        paired = pairs(samples[cell.name], samples[reference.name])
        if not paired:
            continue
        share = in_theory[cell.name]
        published = paper.ratios(cell.encoder, cell.variant)
        printed = paper.PUBLISHED.get((cell.encoder, cell.variant))
        found.append(
            Row(
                encoder=cell.encoder,
                variant=cell.variant,
                tables=printed.table if printed else None,
                after_block=cell.after_block,
                depth=cell.depth,
                gflop=cell.gflop,
                rounds=len(paired),
                vision_ms=spread([1e3 * one.vision_s for one, _ in paired]),
                tokens_per_second=spread([one.tokens_per_second for one, _ in paired]),
                vision_ratio=spread([one.vision_s / whole.vision_s for one, whole in paired]),
                tokens_ratio=spread(
                    [one.tokens_per_second / whole.tokens_per_second for one, whole in paired]
                ),
                vision_theory=share,
                tokens_theory=statistics.median(
                    request / (request - (1 - share) * whole.vision_s)
                    for _, whole in paired
                    for request in [whole.vision_s + whole.prefill_s + whole.decode_s]
                ),
                vision_paper=published and published[0],
                tokens_paper=published and published[1],
            )
        )
    return found


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares through at least three points."""
    slope, constant = np.polyfit(x, y, 1)
    left = np.asarray(y) - (constant + slope * np.asarray(x))
    around = np.asarray(y) - np.mean(y)
    return Line(float(constant), float(slope), float(1 - left @ left / (around @ around)))


def laws(found: Sequence[Row]) -> Laws | None:
    """Of one encoder; None with fewer than three of LaCo's places."""
    own = [row for row in found if row.variant.startswith("LaCo@")]
    if len(own) < 3:
        return None
    ratios = [row.vision_ratio.median for row in own]
    line = fit([row.vision_theory for row in own], ratios)
    whole = next(row for row in own if row.variant == paper.REFERENCE)
    return Laws(
        encoder=own[0].encoder,
        affine=fit([row.depth for row in own], ratios),
        with_constant=line,
        worst_points=max(
            100 * abs(ratio - line.constant - line.slope * row.vision_theory)
            for row, ratio in zip(own, ratios, strict=True)
        ),
        constant_ms=line.constant * whole.vision_ms.median,
    )


__all__ = [
    "LAW_POINTS",
    "LAW_R_SQUARED",
    "Laws",
    "Line",
    "Row",
    "Spread",
    "fit",
    "laws",
    "rows",
    "spread",
]
