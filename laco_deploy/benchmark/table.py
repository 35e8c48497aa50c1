"""A report as rows of text: for the terminal here, and for the page in `page.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from laco_deploy.benchmark.schema import (
    BenchReport,
    Distribution,
    Ratio,
    Speedup,
    VariantResult,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A value and, in brackets, how far it varies."""

    value: str
    range: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.range})" if self.range else self.value


NOTHING = Cell("–")


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity."""

    label: str
    cells: tuple[Cell, ...]
    """One per entry."""
    speedups: tuple[Cell, ...]
    """One per entry of `compared`; empty where a ratio makes no sense."""


def compared(report: BenchReport) -> list[VariantResult]:
    """The entries with a speed-up worth a column."""
    return [
        result
        for result in report.results
        if result.speedup_over_uncompressed is not None and result.baseline != result.name
    ]


def rows(report: BenchReport) -> list[Row]:
    """All quantities that any entry has, those of a request in the order in which they happen."""

    def row(
        label: str,
        cell: Callable[[VariantResult], Cell],
        ratio: Callable[[VariantResult], Ratio | None] = lambda result: None,
    ) -> Row:
        return Row(
            label,
            tuple(cell(result) for result in report.results),
            tuple(_ratio_cell(ratio(result)) for result in compared(report)),
        )

    found = [
        row("visual tokens", lambda one: Cell(str(one.visual_tokens))),
        row("prompt tokens", lambda one: Cell(str(one.prompt_tokens))),
        row("preprocess, ms", lambda one: _cell(one.preprocess_ms)),
        row(
            "vision encoder, ms",
            lambda one: _cell(one.vision_encode_ms),
            _speedup(lambda speedup: speedup.vision_encode),
        ),
        row("embed, ms", lambda one: _cell(one.embed_ms)),
        row("prefill, ms", lambda one: _cell(one.prefill_ms), _speedup(lambda s: s.prefill)),
        row("first token, ms", lambda one: _cell(one.ttft_ms), _speedup(lambda s: s.ttft)),
        row("per later token, ms", lambda one: _cell(one.tpot_ms)),
        *(_answer_rows(report, row)),
        row("load, ms", lambda one: _plain(one.load_ms)),
        row("cold start, ms", lambda one: _plain(one.cold_start_ms)),
        row("peak memory, MB", lambda one: _plain(one.peak_memory_bytes, 1e-6)),
        row("device memory, MB", lambda one: _plain(one.peak_device_bytes, 1e-6)),
        row("energy, J", lambda one: _plain(one.energy_joules)),
    ]
    return [one for one in found if any(cell != NOTHING for cell in one.cells)]


def main_result(report: BenchReport) -> VariantResult:
    """The entry that a headline is about: the first that was trained to be so, with a speed-up."""
    candidates = (
        [one for one in compared(report) if not one.latency_only],
        [one for one in report.results if not one.latency_only],
        report.results,
    )
    return next(found[0] for found in candidates if found)


def headline(report: BenchReport) -> str:
    """The outcome in one sentence."""
    laco = main_result(report)
    speedup = laco.speedup_over_uncompressed
    baseline = None if laco.baseline is None else report.result(laco.baseline)
    if speedup is None or baseline is None or baseline is laco:
        return (
            f"First token after {number(laco.ttft_ms.median)} ms with "
            f"{laco.visual_tokens} visual tokens, {number(laco.tokens_per_second.median)} tokens "
            f"per second in answers of {laco.answers[-1].new_tokens}."
        )
    low, high = speedup.ttft.ci95_low, speedup.ttft.ci95_high
    who = "" if laco.name == laco.variant else f"{laco.name}: "
    return (
        f"{who}{speedup.ttft.median:.2f}× as fast to the first token as uncompressed "
        f"(95 % confidence {low:.2f}–{high:.2f}), with {laco.visual_tokens} visual tokens instead "
        f"of {baseline.visual_tokens}; vision encoder {speedup.vision_encode.median:.2f}×, answer "
        f"of {laco.answers[-1].new_tokens} tokens {speedup.request.median:.2f}×."
    )


@dataclass(frozen=True, slots=True)
class Terminal:
    """The table in the first form that fits in the width of a console without a broken line.

    Entries are columns with ranges, columns of medians, or rows with the main quantities alone. Of
    the speed-ups it has that of the main entry, always with its confidence interval.
    """

    report: BenchReport

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich asks a renderable for."""
        for form in (_columns(self.report, ranges=True), _columns(self.report, ranges=False)):
            if Measurement.get(console, options.update(max_width=10_000), form).maximum <= (
                options.max_width
            ):
                yield form
                return
        yield _lines(self.report)


def to_rich(report: BenchReport) -> Terminal:
    """The table for a terminal."""
    return Terminal(report)


def number(value: float) -> str:
    """Three digits that count; whole numbers from 100 on."""
    return (
        f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    )


def _columns(report: BenchReport, *, ranges: bool) -> Table:
    main = main_result(report)
    places = [number for number, one in enumerate(compared(report)) if one is main]
    heads = [result.name for result in report.results] + [f"{main.name} speed-up" for _ in places]
    table = _empty(report)
    for head in heads:
        table.add_column(Text(head), justify="right")
    for row in rows(report):
        cells = [str(cell) if ranges else cell.value for cell in row.cells]
        cells += [str(row.speedups[place]) for place in places]
        table.add_row(*map(Text, (row.label, *cells)))
    return table


def _lines(report: BenchReport) -> Table:
    def cells(one: VariantResult) -> tuple[str, ...]:
        speedup = one.speedup_over_uncompressed if one.baseline != one.name else None
        times = (one.vision_encode_ms, one.prefill_ms, one.ttft_ms, one.request_ms)
        return (
            one.name,
            str(one.visual_tokens),
            *(number(time.median) for time in times),
            str(_ratio_cell(None if speedup is None else speedup.ttft)),
        )

    heads = ["", "visual tokens", "vision, ms", "prefill, ms", "first token, ms"]
    heads += [f"{report.settings.new_tokens[-1]} tokens, ms", "first token speed-up"]
    found = [cells(one) for one in report.results]
    table = _empty(report)
    table.pad_edge = False
    for place, (head, column) in enumerate(zip(heads, zip(*found, strict=True), strict=True)):
        if place:
            table.add_column(Text(head), justify="right")
        # Lines break between words, and no number is cut off. A least width would not do: rich
        # keeps to it when it has given the room to others, and cuts off the last column.
        table.columns[place].width = max(map(len, " ".join([head, *column]).split()))
    for row in found:
        table.add_row(*map(Text, row))
    return table


def _empty(report: BenchReport) -> Table:
    settings = report.settings
    where = f"{settings.engine} on {settings.device}, {report.machine.cpu_model}"
    title = Text(f"{_title(report)}: {where}")
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    table.add_column("", overflow="fold")
    return table


def _title(report: BenchReport) -> str:
    sweep = report.settings.sweep
    return report.bundle.name if sweep is None else sweep.checkpoint


def _answer_rows(report: BenchReport, row: Callable[..., Row]) -> Sequence[Row]:
    found = []
    for place, length in enumerate(report.settings.new_tokens):
        what = "1 token" if length == 1 else f"{length} tokens"

        def request(one: VariantResult, place: int = place) -> Cell:
            return _cell(one.answers[place].request_ms)

        def rate(one: VariantResult, place: int = place) -> Cell:
            return _cell(one.answers[place].tokens_per_second)

        def ratio(one: VariantResult, place: int = place) -> Ratio | None:
            return one.answers[place].speedup_over_uncompressed

        found.append(row(f"{what}, ms", request, ratio))
        found.append(row(f"{what}, per second", rate))
    return found


def _speedup(part: Callable[[Speedup], Ratio]) -> Callable[[VariantResult], Ratio | None]:
    def ratio(result: VariantResult) -> Ratio | None:
        found = result.speedup_over_uncompressed
        return None if found is None else part(found)

    return ratio


def _cell(quantity: Distribution | None) -> Cell:
    if quantity is None:
        return NOTHING
    return Cell(number(quantity.median), f"{number(quantity.p10)}–{number(quantity.p90)}")


def _plain(value: float | None, scale: float = 1) -> Cell:
    return NOTHING if value is None else Cell(number(value * scale))


def _ratio_cell(ratio: Ratio | None) -> Cell:
    if ratio is None:
        return Cell("")
    return Cell(f"{ratio.median:.2f}×", f"{ratio.ci95_low:.2f}–{ratio.ci95_high:.2f}")


__all__ = [
    "Cell",
    "Row",
    "compared",
    "headline",
    "main_result",
    "number",
    "rows",
    "to_rich",
]
