"""What `bench.json` says of limits and of the law of a sweep."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from laco_deploy.benchmark.schema_base import Count, NotNegative, Strict

LimitedStage = Literal["vision_encode", "embed", "prefill", "tpot"]
LIMITED_STAGES: tuple[LimitedStage, ...] = ("vision_encode", "embed", "prefill", "tpot")
"""Stages whose work a formula gives, by the name of their `<stage>_ms`; `tpot` is one token."""

Positive = Annotated[float, Field(gt=0)]


class MachineRates(Strict):
    """What the machine at hand can do, measured by this process right after the benchmark."""

    matrix_gflops: dict[str, Positive]
    """Best rate of a dense layer in the engine of the bundle, in 10^9 operations per second, by
    the precision that it computed in; empty where it was not measured."""
    memory_gb_per_s: Positive | None
    """Host memory read and written by a copy of arrays larger than the last cache; null where the
    engine runs on a device with memory of its own, or where it was not measured."""
    threads: Count | None
    """CPU threads per inference, as in the benchmark; null: the engine chose."""
    notes: tuple[str, ...]
    """Why a rate is missing."""


class StageLimits(Strict):
    """A stage beside the least time that the machine could need for it."""

    stage: LimitedStage
    gflop: NotNegative
    """10^9 operations, by the formulas of `laco_deploy.operations`."""
    bytes: NotNegative
    """Least bytes to move: every weight once in the precision it is stored in, inputs, outputs and
    KV cache; what passes between two layers is taken to stay in a cache."""
    rate_precision: str | None
    """Key of `MachineRates.matrix_gflops` that the operations are divided by: that of the graph, or
    the fastest where its own was not measured. Null where there is no rate."""
    compute_ms: NotNegative | None
    """Operations over the measured rate."""
    memory_ms: NotNegative | None
    """Bytes over the measured bandwidth."""
    bound: Literal["compute", "memory"] | None
    """Which of the two is longer; null where neither is known."""
    measured_ms: NotNegative | None
    """Median of the benchmark."""
    fraction_reached: NotNegative | None
    """The longer of the two over `measured_ms`: 1 is at the limit. More than 1 says that the engine
    computes faster than in `rate_precision`, or that the weights stay in a cache."""

    @property
    def limit_ms(self) -> float | None:
        """The longer of `compute_ms` and `memory_ms`."""
        known = [value for value in (self.compute_ms, self.memory_ms) if value is not None]
        return max(known, default=None)


class VariantLimits(Strict):
    """The stages of one variant."""

    name: str
    stages: tuple[StageLimits, ...]
    note: str | None
    """Why there are none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.stages) == (self.note is not None):
            raise ValueError(f"{self.name!r} has stages or a note, one of the two")
        return self


class Limits(Strict):
    """Rates of the machine, and every variant beside them."""

    rates: MachineRates
    variants: tuple[VariantLimits, ...]


class Interval(Strict):
    """95 % confidence interval."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low and high are out of order")
        return self


class FitPoint(Strict):
    """One variant on the line."""

    name: str
    fraction: Annotated[float, Field(gt=0, le=1)]
    """k / L: blocks before the merger over all blocks."""
    measured_ms: NotNegative
    """Median of the rounds."""
    fitted_ms: float
    """Of the line at this fraction."""


class AffineFit(Strict):
    """time = constant + slope x k/L by least squares on the medians of a sweep.

    The intervals come from drawing the rounds again with replacement, all points together, with a
    fixed seed: they tell how far the noise of the rounds reaches, not whether the law is right;
    `r_squared` does.
    """

    label: str
    """What the points have in common, such as their precision."""
    stage: str
    """Name of the time that was fitted, `vision_encode`."""
    constant_ms: float
    """What does not become less with k."""
    constant_ci95: Interval
    slope_ms: float
    """From k = 0 to k = L."""
    slope_ci95: Interval
    r_squared: Annotated[float, Field(le=1)] | None
    """Null with two points, which any line meets, and where all times are equal."""
    points: Annotated[tuple[FitPoint, ...], Field(min_length=2)]


__all__ = [
    "LIMITED_STAGES",
    "AffineFit",
    "FitPoint",
    "Interval",
    "LimitedStage",
    "Limits",
    "MachineRates",
    "StageLimits",
    "VariantLimits",
]
