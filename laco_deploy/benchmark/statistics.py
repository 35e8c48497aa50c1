"""Percentiles of runs, paired ratios with their confidence, and drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from laco_deploy.benchmark.request import RequestTimes
from laco_deploy.benchmark.schema import Distribution, Drift, Ratio, Speedup, Spread

RESAMPLES = 2000
"""Draws of a bootstrap; the ends of its interval are then known to about a tenth of its width."""
FEWEST_FOR_DRIFT = 4
"""Rounds without which no slope has a confidence interval."""
DRIFT_PERCENT = 2.0
"""Least drift in all that is worth a word."""


def distribution(values: Sequence[float]) -> Distribution:
    """Median, 10th and 90th percentile of at least one value, and the values."""
    return Distribution(**_percentiles(values), runs=tuple(values))


def spread(values: Sequence[float]) -> Spread:
    """Median, 10th and 90th percentile of at least one value."""
    return Spread(**_percentiles(values))


def paired_ratio(baseline: Sequence[float], own: Sequence[float], seed: int) -> Ratio:
    """Percentiles of the ratios baseline over own of each round, and the median's confidence.

    A disturbance that lasts as long as a round slows both sides and cancels; it would not in a
    ratio of two medians. The interval is the percentile bootstrap of Efron and Tibshirani (1993,
    chapter 13): rounds are drawn with replacement, pairs stay together.
    """
    ratios = np.asarray(baseline, np.float64) / np.asarray(own, np.float64)  # [rounds]
    draws = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    medians = np.median(ratios[draws], axis=1)  # [RESAMPLES]
    low, high = np.percentile(medians, (2.5, 97.5))
    found = _percentiles(ratios.tolist())
    return Ratio(
        **found,
        # With two or three rounds the interpolated ends can miss the median by a rounding error.
        ci95_low=min(float(low), found["median"]),
        ci95_high=max(float(high), found["median"]),
    )


def paired_speedup(
    baseline: Sequence[RequestTimes], own: Sequence[RequestTimes], seed: int
) -> Speedup:
    """How much faster than the baseline each part of a request is."""

    def ratio(value: Callable[[RequestTimes], float]) -> Ratio:
        return paired_ratio([value(one) for one in baseline], [value(one) for one in own], seed)

    return Speedup(
        vision_encode=ratio(lambda one: one.vision_encode_ms),
        prefill=ratio(lambda one: one.prefill_ms),
        ttft=ratio(lambda one: one.ttft_ms),
        request=ratio(lambda one: one.request_ms),
    )


def drift(variant: str, request_ms: Sequence[float]) -> Drift | None:
    """Slope of the requests of one variant over the rounds; None with too few of them.

    The median of all pairwise slopes with the interval of Sen (1968, "Estimates of the regression
    coefficient based on Kendall's tau"), which single slow requests do not move.
    """
    count = len(request_ms)
    if count < FEWEST_FOR_DRIFT:
        return None
    values = np.asarray(request_ms, np.float64)
    first, second = np.triu_indices(count, 1)
    slopes = np.sort((values[second] - values[first]) / (second - first))  # [count (count - 1) / 2]
    reach = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = slopes[max(0, math.floor((len(slopes) - reach) / 2))]
    high = slopes[min(len(slopes) - 1, math.ceil((len(slopes) + reach) / 2))]
    per_round, low, high = (
        float(100 * value / np.median(values)) for value in (np.median(slopes), low, high)
    )
    in_all = per_round * (count - 1)
    return Drift(
        variant=variant,
        percent_per_round=per_round,
        ci95_low=low,
        ci95_high=high,
        percent_in_all=in_all,
        detected=not low <= 0 <= high and abs(in_all) > DRIFT_PERCENT,
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    p10, median, p90 = np.percentile(np.asarray(values, dtype=np.float64), (10, 50, 90))
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


__all__ = ["distribution", "drift", "paired_ratio", "paired_speedup", "spread"]
