"""A comparison of two reports for people: a table for the terminal, and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from laco_deploy.benchmark.changes import Change, Verdict
from laco_deploy.benchmark.differences import differences
from laco_deploy.benchmark.page import figure_html, items, page_of, section
from laco_deploy.benchmark.plot_style import GRID, LAYOUT, bars_height, between
from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.benchmark.table import number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STYLES: dict[Verdict, str] = {
    "worse": "bold red",
    "better": "green",
    "same": "",
    "unsure": "yellow",
}
COLOURS: dict[Verdict, str] = {
    "worse": "#be123c",
    "better": "#0f766e",
    "same": "#94a3b8",
    "unsure": "#d97706",
}


def verdict(found: Sequence[Change]) -> str:
    """The outcome in one sentence."""
    count = Counter(change.verdict for change in found)
    what = f"{count['worse']} worse, {count['better']} better"
    unsure = f", {count['unsure']} to look at" if count["unsure"] else ""
    return f"Of {len(found)} quantities {what}{unsure}, {count['same']} unchanged."


def to_rich(found: Sequence[Change]) -> Table:
    """Every quantity with both values, their ratio and what to think of it."""
    table = Table(box=SIMPLE_HEAD)
    for head in ("", "before", "after", "after / before", ""):
        table.add_column(Text(head), justify="right" if head else "left", overflow="fold")
    for change in found:
        cells = (change.name, *_cells(change))
        table.add_row(*map(Text, cells), style=STYLES[change.verdict])
    return table


def changes_figure(found: Sequence[Change]) -> Figure:
    """Ratio of every quantity, after over before, with its confidence interval; 1 is no change."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for name, colour in COLOURS.items():
        own = [change for change in found if change.verdict == name]
        if own:
            ratios = [change.ratio for change in own]
            figure.add_scatter(
                name=name,
                x=ratios,
                y=[change.name for change in own],
                error_x=between(
                    ratios,
                    [one.ratio if one.low is None else one.low for one in own],
                    [one.ratio if one.high is None else one.high for one in own],
                ),
                mode="markers",
                marker={"size": 9, "color": colour},
                hovertemplate="%{y}: %{x:.3f}",
            )
    figure.update_layout(**LAYOUT)
    height = bars_height(1) + 20 * len(found)
    figure.update_layout(height=height, legend_y=1 + 8 / height)
    figure.update_xaxes(title="after / before", **GRID)
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[change.name for change in found],
        autorange="reversed",
        automargin=True,
        tickmode="linear",  # every name, however many there are
    )
    figure.add_vline(x=1, line={"color": "#6b7280", "dash": "dot", "width": 1})
    return figure


def render_changes(before: BenchReport, after: BenchReport, found: Sequence[Change]) -> str:
    """The whole page, plotly's code included.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    figure = figure_html(changes_figure(found), "changes")
    head = "".join(f"<th>{name}</th>" for name in ("", "before", "after", "after / before", ""))
    body = "".join(
        f'<tr class="{change.verdict}"><th>{escape(change.name)}</th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(change))}</tr>"
        for change in found
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return page_of(
        title=f"laco report: {before.bundle.name} and {after.bundle.name}",
        where=f"before: {_where(before)}; after: {_where(after)}",
        sections=(
            f'<section class="headline"><p>{escape(verdict(found))}</p></section>',
            section("After over before", figure),
            section("All numbers", f'<div class="scroll">{table}</div>'),
            section("What else differs", items([*differences(before, after)] or ["Nothing."])),
        ),
    )


def _where(report: BenchReport) -> str:
    settings = report.settings
    return f"{settings.engine} on {report.machine.cpu_model}, {report.created}"


def _cells(change: Change) -> tuple[str, str, str, str]:
    interval = "" if change.low is None else f" ({change.low:.3f}–{change.high:.3f})"
    return (
        f"{number(change.before)} {change.unit}",
        f"{number(change.after)} {change.unit}",
        f"{change.ratio:.3f}{interval}",
        "" if change.verdict == "same" else change.verdict,
    )


__all__ = ["changes_figure", "render_changes", "to_rich", "verdict"]
