"""What all figures of a report share: colours, labels, layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from laco_deploy.benchmark.schema import BenchReport, Spread, VariantResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = {
    "laco": "#0f766e",
    "external": "#d97706",
    "downsampled": "#be185d",
    "uncompressed": "#64748b",
}
"""Of variants that stand alone."""
PALETTE = (
    *("#0f766e", "#d97706", "#2563eb", "#be185d", "#65a30d", "#7c3aed"),
    *("#0891b2", "#b45309", "#4338ca", "#9f1239", "#15803d", "#a21caf"),
)
"""Of the many entries of a sweep, in turn."""
MANY = 4
"""Entries of a legend that fit in a line or two."""
LAYOUT: dict[str, Any] = {
    "template": "none",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2937"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 64, "r": 24, "t": 16, "b": 48},
    # Above the plot: the margin grows with its lines, and the title of the axis is not covered.
    "legend": {"orientation": "h", "x": 0, "y": 1.03, "yanchor": "bottom", "traceorder": "normal"},
    "showlegend": True,
}
GRID = {"gridcolor": "#e5e7eb", "zerolinecolor": "#9ca3af"}


def height_for(entries: int) -> int:
    """Pixels for a figure with so many entries in its legend, which take lines of their own."""
    return 380 + (16 * entries if entries > MANY else 0)


def bars_height(bars: int) -> int:
    """Pixels for a figure of so many horizontal bars, each with room for two lines of text."""
    return 110 + 38 * max(bars, 2)


def colours(report: BenchReport) -> dict[str, str]:
    """A colour for every entry, by its name."""
    names = [result.variant for result in report.results]
    if len(set(names)) == len(names) and set(names) <= COLOURS.keys():
        return {result.name: COLOURS[result.variant] for result in report.results}
    return {
        result.name: PALETTE[number % len(PALETTE)] for number, result in enumerate(report.results)
    }


def label(result: VariantResult) -> str:
    """The name of an entry, with a word of warning where it was never trained."""
    return f"{result.name} (for latency only)" if result.latency_only else result.name


def bar_label(result: VariantResult) -> str:
    """The same in two lines, for the side of a bar; distinct wherever names are."""
    return label(result).replace(" ", "<br>", 1)


def add_titles(figure: Figure, height: int) -> None:
    """Make room between the titles of subplots and the legend above them."""
    figure.update_layout(height=height, legend_y=1 + 36 / 280, margin_t=48)


def error_bars(spreads: Sequence[Spread]) -> dict[str, Any]:
    """Bars from the 10th to the 90th percentile around medians."""
    return between(
        [one.median for one in spreads],
        [one.p10 for one in spreads],
        [one.p90 for one in spreads],
    )


def between(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """Bars from `low` to `high` around `values`."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [top - value for value, top in zip(values, high, strict=True)],
        "arrayminus": [value - bottom for value, bottom in zip(values, low, strict=True)],
        "thickness": 1.2,
        "width": 3,
    }


__all__ = [
    "GRID",
    "LAYOUT",
    "PALETTE",
    "add_titles",
    "bar_label",
    "bars_height",
    "between",
    "colours",
    "error_bars",
    "height_for",
    "label",
]
