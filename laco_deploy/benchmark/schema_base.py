"""What the parts of `bench.json` are made of: strict models, percentiles, ratios."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Stage = Literal["preprocess", "vision_encode", "embed", "prefill"]
STAGES: tuple[Stage, ...] = ("preprocess", "vision_encode", "embed", "prefill")
"""What happens before the first token, in order; each has a `<stage>_ms`."""


class Strict(BaseModel):
    """No unknown key, no change, no number that JSON cannot hold."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Spread(Strict):
    """Percentiles, with linear interpolation between the runs."""

    median: NotNegative
    p10: NotNegative
    p90: NotNegative

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.p10 <= self.median <= self.p90:
            raise ValueError("p10, median and p90 are out of order")
        return self


class Distribution(Spread):
    """A quantity over all runs."""

    runs: Annotated[tuple[NotNegative, ...], Field(min_length=1)]
    """One value per round, in the order measured."""


class Ratio(Spread):
    """Baseline over own, paired: each ratio is of two requests of the same round."""

    ci95_low: NotNegative
    """Lower end of the 95 % confidence interval of the median."""
    ci95_high: NotNegative
    """Upper end of it: the rounds are drawn again with replacement, with a fixed seed. With fewer
    than about ten rounds such an interval is too narrow."""

    @model_validator(mode="after")
    def _around_median(self) -> Self:
        if not self.ci95_low <= self.median <= self.ci95_high:
            raise ValueError("the median lies outside its confidence interval")
        return self


__all__ = [
    "STAGES",
    "Count",
    "Distribution",
    "NotNegative",
    "Ratio",
    "Share",
    "Spread",
    "Stage",
    "Strict",
]
