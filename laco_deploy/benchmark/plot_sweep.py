"""The figures over many entries: time against the place of the merger, accuracy against time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from laco_deploy.benchmark.plot_style import (
    GRID,
    LAYOUT,
    PALETTE,
    add_titles,
    colours,
    error_bars,
    height_for,
    label,
)
from laco_deploy.benchmark.schema import BenchReport, VariantResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

AXIS = "after_block"
"""Option of a sweep that moves the merger."""


def depth_figure(report: BenchReport) -> Figure | str:
    """Vision encoder and time to first token against k/L, with the lines of `report.fits`."""
    from plotly.subplots import make_subplots

    series = depth_series(report.results)
    if not any(len(results) > 1 for results in series.values()):
        return ""
    titles = ("vision encoder", "time to first token")
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.12)
    for number, (name, results) in enumerate(series.items()):
        colour = PALETTE[number % len(PALETTE)]
        for column in (1, 2):
            spreads = [(one.vision_encode_ms, one.ttft_ms)[column - 1] for one in results]
            figure.add_scatter(
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                x=[_fraction(one) for one in results],
                y=[one.median for one in spreads],
                error_y=error_bars(spreads),
                customdata=[f"k = {one.after_block} of {one.blocks}" for one in results],
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"size": 8},
                hovertemplate="%{customdata}: %{y:.1f} ms",
                row=1,
                col=column,
            )
    columns = {"vision_encode": 1, "ttft": 2}
    for fit in report.fits:
        if fit.stage in columns:
            r_squared = "" if fit.r_squared is None else f", R² {fit.r_squared:.4f}"
            figure.add_scatter(
                name=f"{fit.label}: {fit.constant_ms:.1f} + {fit.slope_ms:.1f} × k/L ms{r_squared}",
                x=[0, 1],
                y=[fit.constant_ms, fit.constant_ms + fit.slope_ms],
                mode="lines",
                line={"color": "#6b7280", "dash": "dot", "width": 1.5},
                hoverinfo="skip",
                row=1,
                col=columns[fit.stage],
            )
    figure.update_layout(**LAYOUT)
    add_titles(figure, height_for(len(series) + len(report.fits)))
    figure.update_xaxes(title="k / L", range=[-0.03, 1.05], showgrid=False)
    figure.update_yaxes(title="ms", rangemode="tozero", **GRID)
    return figure


def depth_series(results: Iterable[VariantResult]) -> dict[str, list[VariantResult]]:
    """Entries that differ in the place of the merger alone, in its order; those without one, and
    what is not of a sweep over `after_block`, are left out."""
    series: dict[str, list[VariantResult]] = {}
    for result in results:
        if result.after_block is not None and AXIS in result.point:
            rest = [f"{key}={value}" for key, value in result.point.items() if key != AXIS]
            series.setdefault(" ".join([result.variant, *rest]), []).append(result)
    return {name: sorted(found, key=_fraction) for name, found in series.items()}


def pareto_figure(report: BenchReport, accuracies: Mapping[str, float]) -> Figure | str:
    """Accuracy against time to first token; a line through those that nothing else beats."""
    from plotly.graph_objects import Figure

    if not accuracies:
        return ""
    judged = [result for result in report.results if result.name in accuracies]
    unknown = sorted(accuracies.keys() - {result.name for result in judged})
    if not judged:
        return f"None of the entries has an accuracy: the file names {', '.join(unknown)}."
    figure = Figure()
    front = pareto_front({one.name: (one.ttft_ms.median, accuracies[one.name]) for one in judged})
    if len(front) > 1:
        best = [one for one in judged if one.name in front]
        best.sort(key=lambda one: one.ttft_ms.median)
        figure.add_scatter(
            name="nothing else is both faster and better",
            x=[one.ttft_ms.median for one in best],
            y=[accuracies[one.name] for one in best],
            mode="lines",
            line={"color": "#9ca3af", "dash": "dot", "width": 1.5},
            hoverinfo="skip",
        )
    paint = colours(report)
    for result in judged:
        figure.add_scatter(
            name=label(result),
            x=[result.ttft_ms.median],
            y=[accuracies[result.name]],
            error_x=error_bars([result.ttft_ms]),
            mode="markers",
            marker={
                "size": 13,
                "color": paint[result.name],
                "symbol": "circle" if result.name in front else "circle-open",
            },
            hovertemplate="%{x:.1f} ms, accuracy %{y:.3g}",
        )
    figure.update_layout(**LAYOUT, height=height_for(len(figure.data)))
    figure.update_xaxes(title="ms to the first token", rangemode="tozero", **GRID)
    figure.update_yaxes(title="accuracy", **GRID)
    return figure


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of the (time, accuracy) that no other beats in one without being worse in the other."""
    return {
        name
        for name, (time, accuracy) in points.items()
        if not any(
            other_time <= time
            and other_accuracy >= accuracy
            and (other_time, other_accuracy) != (time, accuracy)
            for other_time, other_accuracy in points.values()
        )
    }


def _fraction(result: VariantResult) -> float:
    return (result.after_block or 0) / result.blocks


__all__ = ["depth_figure", "depth_series", "pareto_figure", "pareto_front"]
