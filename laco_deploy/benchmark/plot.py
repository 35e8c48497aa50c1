"""The figures of a report, as plotly objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from laco_deploy.benchmark.schema import STAGES, BenchReport, Distribution, VariantResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STAGE_LABELS = {
    "preprocess": "preprocess",
    "vision_encode": "vision encoder",
    "embed": "embed",
    "prefill": "prefill",
}
COLOURS = {"laco": "#0f766e", "external": "#d97706", "uncompressed": "#64748b"}
OTHER_COLOUR = "#7c3aed"
LAYOUT: dict[str, Any] = {
    "template": "none",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2937"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 64, "r": 16, "t": 48, "b": 48},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
}
GRID = {"gridcolor": "#e5e7eb", "zerolinecolor": "#9ca3af", "rangemode": "tozero"}


def stages_figure(report: BenchReport) -> Figure:
    """Grouped bars: the median of each stage before the first token, per variant, p10 to p90."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for result in report.results:
        stages: list[Distribution] = [getattr(result, f"{stage}_ms") for stage in STAGES]
        medians = [stage.median for stage in stages]
        figure.add_bar(
            name=_label(result),
            x=[STAGE_LABELS[stage] for stage in STAGES],
            y=medians,
            error_y={
                "type": "data",
                "array": [stage.p90 - stage.median for stage in stages],
                "arrayminus": [stage.median - stage.p10 for stage in stages],
                "thickness": 1.2,
            },
            marker_color=_colour(result),
            hovertemplate="%{x}: %{y:.2f} ms<extra>" + result.name + "</extra>",
        )
    figure.update_layout(**LAYOUT, barmode="group", height=360, showlegend=True)
    figure.update_yaxes(title="ms", **GRID)
    return figure


def rounds_figure(report: BenchReport) -> Figure:
    """Time to first token and whole request of every round, one line per variant."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(
        cols=2, subplot_titles=("time to first token", "whole request"), horizontal_spacing=0.12
    )
    rounds = list(range(1, report.settings.runs + 1))
    for result in report.results:
        for column, quantity in enumerate((result.ttft_ms, result.request_ms), start=1):
            figure.add_trace(
                Scatter(
                    name=_label(result),
                    legendgroup=result.name,
                    showlegend=column == 1,
                    x=rounds,
                    y=list(quantity.runs),
                    mode="lines+markers",
                    line={"color": _colour(result), "width": 1.5},
                    hovertemplate="round %{x}: %{y:.1f} ms<extra>" + result.name + "</extra>",
                ),
                row=1,
                col=column,
            )
    figure.update_layout(**LAYOUT, height=360)
    figure.update_layout(legend_y=1.12, margin_t=80)
    figure.update_xaxes(title="round", showgrid=False, tickformat="d")
    figure.update_yaxes(title="ms", **GRID)
    return figure


def _colour(result: VariantResult) -> str:
    return COLOURS.get(result.name, OTHER_COLOUR)


def _label(result: VariantResult) -> str:
    return f"{result.name} (for latency only)" if result.latency_only else result.name


__all__ = ["rounds_figure", "stages_figure"]
