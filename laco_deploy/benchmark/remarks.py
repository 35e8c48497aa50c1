"""What stands beside the numbers: how to read them, what disturbed them, what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from laco_deploy.benchmark.schema import BASELINE, BenchReport
from laco_deploy.benchmark.table import compared

NO_BASELINE = (
    "There is no uncompressed baseline to compare with. "
    "Add one: laco export --baseline uncompressed,external"
)
LATENCY_ONLY = (
    "Baselines are for latency only: they share the weights, but were not trained this way, so "
    "their words mean nothing."
)
SUM_TOLERANCE = 0.03
"""Share of a request that the stages may miss before it is said."""
OVERHEAD_TOLERANCE = 0.01
"""Share of a request that the benchmark itself may take before it is said."""


def notes(report: BenchReport) -> Iterator[str]:
    """All of it, in sentences: first how to read the numbers."""
    settings = report.settings
    rounds = "1 round" if settings.runs == 1 else f"{settings.runs} rounds"
    warmups = f"{settings.warmup} warm-up request{'' if settings.warmup == 1 else 's'}"
    yield (
        f"Medians (10th–90th percentile) of {rounds}, after {warmups} each; all in one process, "
        "their order changed every round. Every answer is "
        f"{settings.new_tokens[-1]} tokens long"
        + (", and shorter ones are read off it." if len(settings.new_tokens) > 1 else ".")
    )
    if compared(report):
        yield "Speed-ups pair the requests of a round (95 % confidence interval of the median)."
    elif BASELINE not in report.failed:
        yield NO_BASELINE
    if any(result.latency_only for result in report.results):
        yield LATENCY_ONLY
    yield from report.quality.notes
    yield from missing(report)
    yield from _doubts(report)


def missing(report: BenchReport) -> Iterator[str]:
    """Every part that is not there, and why."""
    for name, reason in report.failed.items():
        if reason in {one.energy_note for one in report.results}:
            continue  # said below
        yield f"{name} is missing: {_sentence(reason)}"
    reasons = {
        "Peak memory, load and cold start are": {one.fresh_note for one in report.results},
        "Peak device memory is": {one.peak_device_note for one in report.results},
        "Energy is": {one.energy_note for one in report.results},
    }
    for what, found in reasons.items():
        for reason in sorted(one for one in found if one is not None):
            yield f"{what} not available: {_sentence(reason)}"
    if report.limits is not None:
        for note in report.limits.rates.notes:
            yield _sentence(note)


def _doubts(report: BenchReport) -> Iterator[str]:
    for result in report.results:
        if abs(result.stage_sum_error) > SUM_TOLERANCE:
            yield (
                f"{result.name}: the stages add up to {result.stage_sum_error:+.1%} of the "
                "request; that much was spent between them."
            )
        if result.overhead_share > OVERHEAD_TOLERANCE:
            yield (
                f"{result.name}: {result.overhead_share:.1%} of a request is work of the "
                "benchmark itself; such short requests are shown longer than they are."
            )


def repeat_command(report: BenchReport, file: str = "bench.json") -> str:
    """The command that makes the same measurement again, from the report's own file.

    A path is a placeholder where the report knows no more than its last name.
    """
    sweep = report.settings.sweep
    what = [report.bundle.name] if sweep is None else ["--ckpt", sweep.checkpoint]
    words = ["laco", "bench", *what, "--repeat", file]
    if report.settings.image.name is not None:
        words += ["--image", report.settings.image.name]
    return shlex.join(words)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


__all__ = ["missing", "notes", "repeat_command"]
