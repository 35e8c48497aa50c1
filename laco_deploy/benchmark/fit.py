"""The law of a sweep over k: time = constant + slope x k/L (the paper's VT column obeys it)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laco_deploy.benchmark.limits_schema import AffineFit, FitPoint, Interval
from laco_deploy.benchmark.schema import Distribution, VariantResult
from laco_runtimes.errors import ArgumentError

Values = NDArray[np.float64]

AFTER_BLOCK = "after_block"
"""Option of a sweep that moves the merger."""
DRAWS = 2000
SEED = 0
STAGES_OF_LAW: Mapping[str, Callable[[VariantResult], Distribution]] = {
    "vision_encode": lambda result: result.vision_encode_ms,
    "ttft": lambda result: result.ttft_ms,
}
"""Times that depend on the place of the merger; the others do not."""
SPAN = (2.5, 97.5)
"""Percentiles of a 95 % confidence interval."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One point of a sweep."""

    name: str
    fraction: float
    """k / L."""
    runs_ms: Sequence[float]
    """One time per round; the rounds are the same for all points."""


def fit_affine(label: str, stage: str, points: Sequence[Measured]) -> AffineFit:
    """Least squares on the medians, with intervals from drawing the rounds again.

    Args:
        label: what the points have in common.
        stage: name of the time.
        points: in any order, of as many rounds each.

    Raises:
        ArgumentError: fewer than two different fractions, or points of different numbers of rounds.
    """
    if len({point.fraction for point in points}) < 2:
        raise ArgumentError(
            "a line takes times at two different k at the least. Sweep over more of them."
        )
    rounds = {len(point.runs_ms) for point in points}
    if len(rounds) != 1 or 0 in rounds:
        raise ArgumentError(
            "the points of a line must have as many rounds each, and one at the least. "
            "Measure them in one benchmark."
        )
    ordered = sorted(points, key=lambda point: point.fraction)
    fractions = np.array([point.fraction for point in ordered])  # [points]
    runs = np.array([point.runs_ms for point in ordered], np.float64)  # [points, rounds]
    medians = np.median(runs, axis=1)
    constant, slope = _line(fractions, medians[:, None])[:, 0]
    drawn = np.random.default_rng(SEED).integers(runs.shape[1], size=(DRAWS, runs.shape[1]))
    again = np.median(runs[:, drawn], axis=2)  # [points, draws]
    constants, slopes = _line(fractions, again)
    fitted = constant + slope * fractions
    return AffineFit(
        label=label,
        stage=stage,
        constant_ms=float(constant),
        constant_ci95=_interval(constants),
        slope_ms=float(slope),
        slope_ci95=_interval(slopes),
        r_squared=_r_squared(medians, fitted, len(set(fractions))),
        points=tuple(
            FitPoint(
                name=point.name,
                fraction=point.fraction,
                measured_ms=float(median),
                fitted_ms=float(value),
            )
            for point, median, value in zip(ordered, medians, fitted, strict=True)
        ),
    )


def fits_of(results: Sequence[VariantResult]) -> tuple[AffineFit, ...]:
    """The law of the vision encoder and of the first token, for all that differ in the place
    of the merger alone; none where no two places were measured."""
    series: dict[str, list[VariantResult]] = {}
    for result in results:
        if result.after_block is not None and AFTER_BLOCK in result.point:
            rest = [f"{name}={one}" for name, one in result.point.items() if name != AFTER_BLOCK]
            series.setdefault(" ".join([result.variant, *rest]), []).append(result)
    return tuple(
        fit_affine(
            label,
            stage,
            [Measured(one.name, _fraction(one), times(one).runs) for one in found],
        )
        for label, found in series.items()
        if len({_fraction(one) for one in found}) > 1
        for stage, times in STAGES_OF_LAW.items()
    )


def _fraction(result: VariantResult) -> float:
    return (result.after_block or 0) / result.blocks


def _line(fractions: Values, times: Values) -> Values:
    """[points], [points, sets] -> constants and slopes, [2, sets]."""
    design = np.stack([np.ones_like(fractions), fractions], axis=1)  # [points, 2]
    return np.linalg.lstsq(design, times, rcond=None)[0].astype(np.float64)


def _r_squared(times: Values, fitted: Values, places: int) -> float | None:
    spread = float(np.sum((times - times.mean()) ** 2))
    if places < 3 or spread == 0:
        return None
    return 1 - float(np.sum((times - fitted) ** 2)) / spread


def _interval(values: Values) -> Interval:
    low, high = np.percentile(values, SPAN)
    return Interval(low=float(low), high=float(high))


__all__ = ["AFTER_BLOCK", "Measured", "fit_affine", "fits_of"]
