"""The figures of a report, as plotly objects; in place of one, a sentence why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING

from laco_deploy.benchmark.limits_schema import StageLimits
from laco_deploy.benchmark.plot_style import (
    GRID,
    LAYOUT,
    PALETTE,
    add_titles,
    bar_label,
    bars_height,
    between,
    colours,
    error_bars,
    height_for,
    label,
)
from laco_deploy.benchmark.schema import (
    BASELINE,
    STAGES,
    BenchReport,
    Ratio,
    Stage,
    VariantResult,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STAGE_LABELS: dict[str, str] = {
    "preprocess": "preprocess",
    "vision_encode": "vision encoder",
    "embed": "embed",
    "prefill": "prefill",
    "tpot": "per later token",
}
STAGE_COLOURS: dict[Stage, str] = {
    "preprocess": "#94a3b8",
    "vision_encode": "#0f766e",
    "embed": "#facc15",
    "prefill": "#2563eb",
}


def stages_figure(report: BenchReport) -> Figure:
    """One bar per entry: the medians of the stages before the first token, one after the other.

    At the end of each bar the 10th to the 90th percentile of the time to first token.
    """
    from plotly.graph_objects import Figure

    figure = Figure()
    names = [bar_label(result) for result in report.results]
    for stage in STAGES:
        spreads = [getattr(result, f"{stage}_ms") for result in report.results]
        figure.add_bar(
            name=STAGE_LABELS[stage],
            orientation="h",
            y=names,
            x=[one.median for one in spreads],
            customdata=[[one.p10, one.p90] for one in spreads],
            marker_color=STAGE_COLOURS[stage],
            error_x=error_bars([result.ttft_ms for result in report.results])
            if stage == STAGES[-1]
            else None,
            hovertemplate="%{x:.2f} ms (%{customdata[0]:.2f}–%{customdata[1]:.2f})",
        )
    figure.update_layout(**LAYOUT, barmode="stack")
    return _flat(figure, len(names), "ms to the first token")


def lengths_figure(report: BenchReport) -> Figure | str:
    """Speed-up of the whole request against the length of the answer; one token is the first."""
    from plotly.graph_objects import Figure

    figure = Figure()
    paint = colours(report)
    lengths: set[int] = set()
    for result in report.results:
        points = _speedups(result)
        if result.variant == BASELINE or not points:
            continue
        lengths |= points.keys()
        ratios = list(points.values())
        medians = [ratio.median for ratio in ratios]
        figure.add_scatter(
            name=label(result),
            x=list(points),
            y=medians,
            error_y=between(
                medians, [one.ci95_low for one in ratios], [one.ci95_high for one in ratios]
            ),
            mode="lines+markers",
            line={"color": paint[result.name], "width": 2},
            marker={"size": 8},
            hovertemplate="%{x} tokens: %{y:.2f}×",
        )
    if not lengths:
        return "There is no uncompressed baseline to be faster than."
    figure.update_layout(**LAYOUT, height=height_for(len(figure.data)))
    ticks = sorted(lengths)
    figure.update_xaxes(
        title="tokens of the answer", type="log", tickvals=ticks, ticktext=ticks, showgrid=False
    )
    figure.update_yaxes(title="times as fast", rangemode="tozero", **GRID)
    figure.add_hline(y=1, line={"color": "#9ca3af", "dash": "dot", "width": 1})
    return figure


def memory_figure(report: BenchReport) -> Figure | str:
    """Peak memory of a process that runs one entry alone, and of the device."""
    from plotly.graph_objects import Figure

    columns = {
        "process": ([one.peak_memory_bytes for one in report.results], "#0f766e"),
        "device": ([one.peak_device_bytes for one in report.results], "#7c3aed"),
    }
    figure = Figure()
    for name, (found, colour) in columns.items():
        if any(found):
            figure.add_bar(
                name=name,
                orientation="h",
                y=[bar_label(result) for result in report.results],
                x=[None if size is None else size / 1e6 for size in found],
                marker_color=colour,
                hovertemplate="%{x:.0f} MB",
            )
    if not figure.data:
        return _reasons("Peak memory", (one.fresh_note for one in report.results))
    figure.update_layout(**LAYOUT, barmode="group")
    return _flat(figure, len(report.results) * len(figure.data), "MB")


def energy_figure(report: BenchReport) -> Figure | str:
    """Joules of a request, one after the other what each counted meter saw."""
    from plotly.graph_objects import Figure

    meters = dict.fromkeys(
        reading.meter for result in report.results for reading in result.energy if reading.counted
    )
    if not meters:
        return _reasons("Energy", (one.energy_note for one in report.results))
    figure = Figure()
    for meter, colour in zip(meters, cycle(PALETTE), strict=False):
        figure.add_bar(
            name=meter,
            orientation="h",
            y=[bar_label(result) for result in report.results],
            x=[
                sum(one.joules for one in result.energy if one.counted and one.meter == meter)
                if result.energy
                else None
                for result in report.results
            ],
            marker_color=colour,
            hovertemplate="%{x:.3g} J",
        )
    figure.update_layout(**LAYOUT, barmode="stack")
    return _flat(figure, len(report.results), "joules per request of the longest answer")


def limits_figure(report: BenchReport) -> Figure | str:
    """How near each stage of an entry comes to what the machine can do, in percent."""
    from plotly.graph_objects import Figure

    if report.limits is None:
        return f"Limits are not known: {report.failed.get('limits', 'they were not asked for')}."
    figure = Figure()
    paint = colours(report)
    for one in report.limits.variants:
        stages = [stage for stage in one.stages if stage.fraction_reached is not None]
        if stages:
            figure.add_bar(
                name=one.name,
                x=[STAGE_LABELS.get(stage.stage, stage.stage) for stage in stages],
                y=[100 * (stage.fraction_reached or 0) for stage in stages],
                customdata=[_work(stage) for stage in stages],
                marker_color=paint.get(one.name),
                hovertemplate="%{x}: %{y:.1f} %<br>%{customdata}",
            )
    if not figure.data:
        notes = (*report.limits.rates.notes, *(one.note for one in report.limits.variants))
        return _reasons("The fraction of the limit", notes)
    figure.update_layout(**LAYOUT, height=height_for(len(figure.data)), barmode="group", bargap=0.3)
    figure.update_yaxes(title="of the limit", ticksuffix=" %", rangemode="tozero", **GRID)
    return figure


def rounds_figure(report: BenchReport) -> Figure:
    """Time to first token and whole request of every round, one line per entry."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    titles = ("time to first token", "whole request")
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.12)
    rounds = list(range(1, report.settings.runs + 1))
    paint = colours(report)
    for result in report.results:
        for column, quantity in enumerate((result.ttft_ms, result.request_ms), start=1):
            figure.add_trace(
                Scatter(
                    name=label(result),
                    legendgroup=result.name,
                    showlegend=column == 1,
                    x=rounds,
                    y=list(quantity.runs),
                    mode="lines+markers",
                    line={"color": paint[result.name], "width": 1.5},
                    hovertemplate="round %{x}: %{y:.1f} ms",
                ),
                row=1,
                col=column,
            )
    figure.update_layout(**LAYOUT)
    add_titles(figure, height_for(len(report.results)))
    figure.update_xaxes(title="round", showgrid=False, tickformat="d")
    figure.update_yaxes(title="ms", rangemode="tozero", **GRID)
    return figure


def _speedups(result: VariantResult) -> dict[int, Ratio]:
    """Speed-ups by the length of the answer, the first token included."""
    found: dict[int, Ratio] = {}
    if result.speedup_over_uncompressed is not None:
        found[1] = result.speedup_over_uncompressed.ttft
    for answer in result.answers:
        if answer.speedup_over_uncompressed is not None:
            found[answer.new_tokens] = answer.speedup_over_uncompressed
    return found


def _work(stage: StageLimits) -> str:
    return f"{stage.gflop:.3g} GFLOP, {stage.bytes / 1e6:.3g} MB, bound by {stage.bound}"


def _reasons(what: str, notes: Iterable[str | None]) -> str:
    reasons = sorted({note for note in notes if note})
    return f"{what} is not available: {'; '.join(reasons) or 'it was not asked for'}."


def _flat(figure: Figure, bars: int, title: str) -> Figure:
    """Horizontal bars, the first entry on top, however long the names."""
    height = bars_height(bars)
    figure.update_layout(height=height, legend_y=1 + 8 / height)
    figure.update_xaxes(title=title, rangemode="tozero", **GRID)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


__all__ = [
    "STAGE_LABELS",
    "energy_figure",
    "lengths_figure",
    "limits_figure",
    "memory_figure",
    "rounds_figure",
    "stages_figure",
]
