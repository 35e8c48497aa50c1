"""A report as rows of text: for the terminal here, and for the page in `page.py`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from laco_deploy.benchmark.schema import (
    BASELINE,
    BenchReport,
    Distribution,
    Speedup,
    Spread,
    VariantResult,
)

NO_BASELINE = (
    "The bundle has no uncompressed baseline to compare with. "
    "Add one: laco export --baseline uncompressed,external"
)
LATENCY_ONLY = (
    "Baselines are for latency only: they share the weights, but were not trained this way, so "
    "their words mean nothing."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A value and, in brackets, how far it varies."""

    value: str
    range: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.range})" if self.range else self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity."""

    label: str
    cells: tuple[Cell, ...]
    """One per variant."""
    speedups: tuple[Cell, ...]
    """One per variant of `compared`; empty where a ratio makes no sense."""


def compared(report: BenchReport) -> list[VariantResult]:
    """The variants with a speed-up worth a column."""
    return [
        result
        for result in report.results
        if result.speedup_over_uncompressed is not None and result.name != BASELINE
    ]


def rows(report: BenchReport) -> list[Row]:
    """All quantities, those before the first token in the order in which they happen."""

    def row(
        label: str,
        cell: Callable[[VariantResult], Cell],
        ratio: Callable[[Speedup], Spread] | None = None,
    ) -> Row:
        return Row(
            label,
            tuple(cell(result) for result in report.results),
            tuple(_ratio_cell(result, ratio) for result in compared(report)),
        )

    return [
        row("visual tokens", lambda one: Cell(str(one.visual_tokens))),
        row("prompt tokens", lambda one: Cell(str(one.prompt_tokens))),
        row("preprocess, ms", lambda one: _cell(one.preprocess_ms)),
        row(
            "vision encoder, ms",
            lambda one: _cell(one.vision_encode_ms),
            lambda speedup: speedup.vision_encode,
        ),
        row("embed, ms", lambda one: _cell(one.embed_ms)),
        row("prefill, ms", lambda one: _cell(one.prefill_ms), lambda speedup: speedup.prefill),
        row("first token, ms", lambda one: _cell(one.ttft_ms), lambda s: s.ttft),
        row("per later token, ms", lambda one: _cell(one.tpot_ms)),
        row("whole request, ms", lambda one: _cell(one.request_ms), lambda s: s.request),
        row("tokens per second", lambda one: _cell(one.tokens_per_second)),
        row("peak memory, MB", lambda one: _memory_cell(one.peak_memory_bytes)),
    ]


def headline(report: BenchReport) -> str:
    """The outcome in one sentence."""
    laco = report.results[0]
    speedup = laco.speedup_over_uncompressed
    baseline = report.result(BASELINE)
    if speedup is None or baseline is None:
        return (
            f"First token after {number(laco.ttft_ms.median)} ms with "
            f"{laco.visual_tokens} visual tokens, {number(laco.tokens_per_second.median)} tokens "
            "per second."
        )
    return (
        f"{speedup.ttft.median:.2f}× as fast to the first token as uncompressed "
        f"({laco.visual_tokens} visual tokens instead of {baseline.visual_tokens}); "
        f"vision encoder {speedup.vision_encode.median:.2f}×, "
        f"whole request {speedup.request.median:.2f}×."
    )


def notes(report: BenchReport) -> Iterator[str]:
    """What a reader must know to read the numbers right."""
    settings = report.settings
    rounds = "1 round" if settings.runs == 1 else f"{settings.runs} rounds"
    yield (
        f"Medians (10th–90th percentile) of {rounds}, after {settings.warmup} warm-up requests "
        "per variant; all variants in one process, their order changed every round. "
        f"Every answer is {settings.new_tokens} tokens long. "
        + ("" if report.result(BASELINE) is None else "Speed-ups pair the requests of a round.")
    ).strip()
    if report.result(BASELINE) is None:
        yield NO_BASELINE
    if any(result.latency_only for result in report.results):
        yield LATENCY_ONLY
    reasons = {one.peak_memory_note for one in report.results if one.peak_memory_note}
    for reason in sorted(reasons):
        yield f"Peak memory is not known: {reason}."


def repeat_command(report: BenchReport) -> str:
    """The command that makes the same measurement again, paths by their last name."""
    settings = report.settings
    words = ["laco", "bench", report.bundle.name]
    if settings.image.name is not None:
        words += ["--image", settings.image.name]
    words += ["--prompt", settings.prompt, "--new-tokens", str(settings.new_tokens)]
    words += ["--runs", str(settings.runs), "--warmup", str(settings.warmup)]
    words += ["--device", settings.device_requested]
    if settings.threads is not None:
        words += ["--threads", str(settings.threads)]
    return shlex.join(words)


def to_rich(report: BenchReport) -> Table:
    """The table for a terminal; of the speed-ups only that of `laco`, so that 80 columns do."""
    settings = report.settings
    where = f"{settings.engine} on {settings.device}, {report.machine.cpu_model}"
    found = [(row.label, *row.cells, *row.speedups[:1]) for row in rows(report)]
    heads = ["", *(result.name for result in report.results)]
    heads += [f"{result.name} speed-up" for result in compared(report)[:1]]
    table = Table(
        title=Text(f"{report.bundle.name}: {where}"), box=SIMPLE_HEAD, title_justify="left"
    )
    for head, column in zip(heads, zip(*found, strict=True), strict=True):
        words = " ".join([head, *map(str, column)]).split()
        # Where it is narrow, every range goes below its value; labels stay whole.
        table.add_column(
            Text(head),
            justify="right" if head else "left",
            min_width=max(map(len, words)),
            no_wrap=not head,
        )
    for cells in found:
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def number(value: float) -> str:
    """Three digits that count; whole numbers from 100 on."""
    return (
        f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    )


def _cell(quantity: Distribution | None) -> Cell:
    if quantity is None:
        return Cell("–")
    return Cell(number(quantity.median), f"{number(quantity.p10)}–{number(quantity.p90)}")


def _ratio_cell(result: VariantResult, ratio: Callable[[Speedup], Spread] | None) -> Cell:
    if ratio is None or result.speedup_over_uncompressed is None:
        return Cell("")
    found = ratio(result.speedup_over_uncompressed)
    return Cell(f"{found.median:.2f}×", f"{found.p10:.2f}–{found.p90:.2f}")


def _memory_cell(size_bytes: int | None) -> Cell:
    return Cell("–" if size_bytes is None else f"{size_bytes / 1e6:.0f}")


__all__ = [
    "Cell",
    "Row",
    "compared",
    "headline",
    "notes",
    "number",
    "repeat_command",
    "rows",
    "to_rich",
]
