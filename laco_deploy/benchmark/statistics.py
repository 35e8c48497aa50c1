"""Percentiles of runs and of paired ratios."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from laco_deploy.benchmark.schema import Distribution, Speedup, Spread
from laco_runtimes.reply import Timings


def distribution(values: Sequence[float]) -> Distribution:
    """Median, 10th and 90th percentile of at least one value, and the values."""
    return Distribution(**_percentiles(values), runs=tuple(values))


def spread(values: Sequence[float]) -> Spread:
    """Median, 10th and 90th percentile of at least one value."""
    return Spread(**_percentiles(values))


def paired_speedup(baseline: Sequence[Timings], own: Sequence[Timings]) -> Speedup:
    """Percentiles of the ratios baseline over own of each round.

    A disturbance that lasts as long as a round slows both sides and cancels; it would not in a
    ratio of two medians.
    """

    def ratios(name: str) -> Spread:
        return spread(
            [getattr(b, name) / getattr(o, name) for b, o in zip(baseline, own, strict=True)]
        )

    return Speedup(
        vision_encode=ratios("vision_encode_ms"),
        prefill=ratios("prefill_ms"),
        ttft=ratios("ttft_ms"),
        request=ratios("request_ms"),
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    p10, median, p90 = np.percentile(np.asarray(values, dtype=np.float64), (10, 50, 90))
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


__all__ = ["distribution", "paired_speedup", "spread"]
