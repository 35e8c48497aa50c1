"""Two reports side by side: what became slower or faster beyond what chance explains."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from laco_deploy.benchmark.schema import BenchReport, Distribution, VariantResult

CONFIDENCE = 0.95
"""That not one of all comparisons is called a change by chance (Bonferroni)."""
RESAMPLES = 10_000
"""Draws of a bootstrap; with hundreds of comparisons the ends lie far out."""
FEWEST_ROUNDS = 6
"""The rounds of fewer lie all on one side of the median in more than 5 % of cases (2^(1 - 5))."""
TOLERANCE = 0.02
"""Share below which a change is of no interest, however certain."""

Verdict = Literal["worse", "better", "same", "unsure"]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity of one entry in both reports."""

    entry: str
    quantity: str
    unit: str
    before: float
    """Median, in `unit`."""
    after: float
    ratio: float
    """after / before."""
    low: float | None
    """Lower end of the confidence interval of `ratio`; None where there are no rounds."""
    high: float | None
    verdict: Verdict
    """`unsure`: too few rounds, or a single value beyond the tolerance: look at it."""

    @property
    def name(self) -> str:
        """Entry and quantity in one line."""
        return f"{self.entry}: {self.quantity}"


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is compared."""

    name: str
    unit: str
    before: Values
    """[rounds], or [1] for what is found once."""
    after: Values
    more_is_better: bool
    repeated: bool
    """Whether there is one value per round."""


def changes(
    before: BenchReport, after: BenchReport, *, tolerance: float = TOLERANCE
) -> list[Change]:
    """Every quantity that both reports have, entry by entry.

    A change is called one where the bootstrap interval of the ratio of medians, widened for the
    number of comparisons, does not hold 1, and its size is beyond `tolerance`. Speed-ups compare
    the ratios of each round, in which the disturbances of a busy machine cancel; times do not have
    that, so between two runs on a busy machine trust the speed-ups.
    """
    pairs = [
        (result, quantity)
        for result in after.results
        if (earlier := before.result(result.name)) is not None
        for quantity in _quantities(before, earlier, after, result)
    ]
    tested = sum(quantity.repeated for _, quantity in pairs)
    level = 1 - (1 - CONFIDENCE) / max(tested, 1)
    return [_change(result.name, quantity, level, tolerance) for result, quantity in pairs]


def regressions(found: Sequence[Change]) -> list[Change]:
    """Those that became worse."""
    return [change for change in found if change.verdict == "worse"]


def ratio_interval(before: Values, after: Values, level: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of median(after) / median(before), the two drawn independently.

    Args:
        before: [rounds], positive.
        after: [rounds], not necessarily as many.
        level: confidence, below 1.
    """
    random = np.random.default_rng(seed)
    draws = [
        np.median(values[random.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)
        for values in (before, after)
    ]
    low, high = np.quantile(draws[1] / draws[0], ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _change(entry: str, quantity: Quantity, level: float, tolerance: float) -> Change:
    before, after = float(np.median(quantity.before)), float(np.median(quantity.after))
    ratio = after / before
    low = high = None
    certain = False
    if quantity.repeated:
        # A seed of its own for every quantity, and the same one every time.
        seed = zlib.crc32(f"{entry}\0{quantity.name}".encode())
        low, high = ratio_interval(quantity.before, quantity.after, level, seed)
        low, high = min(low, ratio), max(high, ratio)
        rounds = min(len(quantity.before), len(quantity.after))
        certain = rounds >= FEWEST_ROUNDS
    beyond = abs(ratio - 1) > tolerance and (low is None or high is None or not low <= 1 <= high)
    verdict: Verdict = "same"
    if beyond:
        good = (ratio > 1) == quantity.more_is_better
        verdict = "unsure" if not certain else "better" if good else "worse"
    return Change(entry, quantity.name, quantity.unit, before, after, ratio, low, high, verdict)


def _quantities(
    before: BenchReport, earlier: VariantResult, after: BenchReport, result: VariantResult
) -> Iterator[Quantity]:
    """Only what is above 0 on both sides has a ratio."""
    for found in (
        *_speedups(before, earlier, after, result),
        *_times(earlier, result),
        *_single(earlier, result),
    ):
        if found.before.min() > 0 and found.after.min() > 0:
            yield found


def _times(earlier: VariantResult, result: VariantResult) -> Iterator[Quantity]:
    names = {
        "vision encoder": "vision_encode_ms",
        "prefill": "prefill_ms",
        "first token": "ttft_ms",
        "per later token": "tpot_ms",
    }
    for name, attribute in names.items():
        one, other = getattr(earlier, attribute), getattr(result, attribute)
        if one is not None and other is not None:
            yield Quantity(name, "ms", _runs(one), _runs(other), False, True)
    for length, old, new in _shared_answers(earlier, result):
        yield Quantity(length, "ms", _runs(old), _runs(new), False, True)


def _speedups(
    before: BenchReport, earlier: VariantResult, after: BenchReport, result: VariantResult
) -> Iterator[Quantity]:
    base, other_base = _baseline(before, earlier), _baseline(after, result)
    if base is None or other_base is None:
        return
    for name, attribute in (("vision encoder", "vision_encode_ms"), ("first token", "ttft_ms")):
        yield Quantity(
            f"speed-up, {name}",
            "×",
            _runs(getattr(base, attribute)) / _runs(getattr(earlier, attribute)),
            _runs(getattr(other_base, attribute)) / _runs(getattr(result, attribute)),
            True,
            True,
        )
    of_bases = {name: (old, new) for name, old, new in _shared_answers(base, other_base)}
    for name, old, new in _shared_answers(earlier, result):
        if name in of_bases:
            old_base, new_base = of_bases[name]
            yield Quantity(
                f"speed-up, {name}",
                "×",
                _runs(old_base) / _runs(old),
                _runs(new_base) / _runs(new),
                True,
                True,
            )


def _single(earlier: VariantResult, result: VariantResult) -> Iterator[Quantity]:
    rows: tuple[tuple[str, str, Callable[[VariantResult], float | None]], ...] = (
        ("load", "ms", lambda one: one.load_ms),
        ("cold start", "ms", lambda one: one.cold_start_ms),
        ("peak memory", "MB", lambda one: _mega(one.peak_memory_bytes)),
        ("peak device memory", "MB", lambda one: _mega(one.peak_device_bytes)),
        ("energy per request", "J", lambda one: one.energy_joules),
    )
    for name, unit, value in rows:
        old, new = value(earlier), value(result)
        if old is not None and new is not None:
            yield Quantity(name, unit, np.array([old]), np.array([new]), False, False)


def _shared_answers(
    earlier: VariantResult, result: VariantResult
) -> Iterator[tuple[str, Distribution, Distribution]]:
    old = {answer.new_tokens: answer.request_ms for answer in earlier.answers}
    for answer in result.answers:
        if answer.new_tokens in old:
            name = f"answer of {answer.new_tokens} tokens"
            yield name, old[answer.new_tokens], answer.request_ms


def _baseline(report: BenchReport, result: VariantResult) -> VariantResult | None:
    """What its speed-ups are relative to; None for the baseline itself."""
    if result.baseline is None or result.baseline == result.name:
        return None
    return report.result(result.baseline)


def _runs(quantity: Distribution) -> Values:
    return np.asarray(quantity.runs, np.float64)  # [rounds]


def _mega(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


__all__ = ["TOLERANCE", "Change", "Verdict", "changes", "ratio_interval", "regressions"]
