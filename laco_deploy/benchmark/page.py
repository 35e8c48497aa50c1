"""A report as one HTML file that needs nothing else: no server, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from string import Template
from typing import TYPE_CHECKING

from laco_deploy.benchmark.facts import facts
from laco_deploy.benchmark.plot import (
    energy_figure,
    lengths_figure,
    limits_figure,
    memory_figure,
    rounds_figure,
    stages_figure,
)
from laco_deploy.benchmark.plot_sweep import depth_figure, pareto_figure
from laco_deploy.benchmark.remarks import notes, repeat_command
from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.benchmark.table import Cell, compared, headline, main_result, rows
from laco_runtimes.errors import MissingPackageError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Accuracies = Mapping[str, float]
"""By name of an entry."""


class MissingPlotlyError(MissingPackageError):
    """The page cannot be drawn; everything else works without."""

    def __init__(self) -> None:
        super().__init__("plotly", "report")
        self.msg = f"{self.msg} Without a page: laco bench --no-html, laco report without --html"


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure with its section of the page."""

    name: str
    """Of its element."""
    title: str
    draw: Callable[[BenchReport, Accuracies], Figure | str]
    """A figure, or a sentence why there is none; an empty one where it does not apply."""
    reading: str
    """How to read it."""


PLOTS = (
    Plot(
        "stages",
        "Stages before the first token",
        lambda report, _: stages_figure(report),
        "Medians of the stages, one after the other; the whisker is the 10th to the 90th "
        "percentile of the time to the first token.",
    ),
    Plot(
        "depth",
        "Latency against the place of the merger",
        lambda report, _: depth_figure(report),
        "The earlier the tokens are merged (small k of L blocks), the less is left to compute.",
    ),
    Plot(
        "lengths",
        "Speed-up against the length of the answer",
        lambda report, _: lengths_figure(report),
        "Against the uncompressed model, with 95 % confidence intervals. Compression speeds up "
        "what comes before the first token; the longer the answer, the less that counts.",
    ),
    Plot(
        "pareto",
        "Accuracy against latency",
        pareto_figure,
        "Accuracies were given with --accuracy, they were not measured here. Filled marks: nothing "
        "else is both faster and better.",
    ),
    Plot(
        "memory",
        "Peak memory",
        lambda report, _: memory_figure(report),
        "Of a process that runs one entry alone, loading included.",
    ),
    Plot(
        "energy",
        "Energy per request",
        lambda report, _: energy_figure(report),
        "All that is behind the meters, other programs and idling included.",
    ),
    Plot(
        "limits",
        "How near the limits of the machine",
        lambda report, _: limits_figure(report),
        "Least time that the operations and bytes of a stage need, at the matrix rate and memory "
        "bandwidth measured here, over the time it took.",
    ),
    Plot(
        "rounds",
        "Every round",
        lambda report, _: rounds_figure(report),
        "A slope that all lines share is a machine growing hot; a peak is something else running.",
    ),
)
"""In the order of the page."""


def require_plotly() -> None:
    """Find out before a long measurement, not after it.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    if find_spec("plotly") is None:
        raise MissingPlotlyError


def render_page(report: BenchReport, accuracies: Accuracies | None = None) -> str:
    """The whole page, plotly's code (about 5 MB) included.

    Args:
        accuracies: by name of an entry; those of other names are listed as unknown.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    settings, sweep = report.settings, report.settings.sweep
    title = f"laco bench: {report.bundle.name if sweep is None else sweep.checkpoint}"
    accuracies = accuracies or {}
    unknown = [
        f"An accuracy was given for {name!r}, which is not in this report."
        for name in accuracies
        if report.result(name) is None
    ]
    return page_of(
        title=title,
        where=f"{settings.engine} on {settings.device}, {report.machine.cpu_model}, "
        f"{report.created}",
        sections=(
            f'<section class="headline">{_headline(report)}</section>',
            *(_section(plot, report, accuracies) for plot in PLOTS),
            section("All numbers", f'<div class="scroll">{_table(report)}</div>'),
            section("How to read this, and what is missing", items([*notes(report), *unknown])),
            section("Machine and settings", _facts(facts(report))),
            section("Measure it again", f"<pre>{escape(repeat_command(report))}</pre>"),
        ),
    )


def page_of(*, title: str, where: str, sections: Iterable[str]) -> str:
    """Sections, which are HTML, under a title, which is text.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    require_plotly()
    from plotly.offline import get_plotlyjs

    template = Template((files("laco_deploy.benchmark") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        where=escape(where),
        plotly=get_plotlyjs(),
        sections="\n".join(sections),
    )


def section(title: str, content: str) -> str:
    """A section of the page, around HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def figure_html(figure: Figure, name: str) -> str:
    """A figure in an element of that id."""
    return str(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            default_height=f"{figure.layout.height}px",
            config={"displayModeBar": False, "responsive": True},
        )
    )


def items(sentences: Iterable[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in sentences)}</ul>"


def _section(plot: Plot, report: BenchReport, accuracies: Accuracies) -> str:
    drawn = plot.draw(report, accuracies)
    if isinstance(drawn, str):
        return section(plot.title, f"<p>{escape(drawn)}</p>") if drawn else ""
    reading = f'<p class="reading">{escape(plot.reading)}</p>'
    return section(plot.title, figure_html(drawn, plot.name) + reading)


def _headline(report: BenchReport) -> str:
    laco = main_result(report)
    speedup = laco.speedup_over_uncompressed
    if speedup is None or laco not in compared(report):
        return f"<p>{escape(headline(report))}</p>"
    ratios = {
        "to the first token": speedup.ttft,
        "vision encoder": speedup.vision_encode,
        f"answer of {laco.answers[-1].new_tokens} tokens": speedup.request,
    }
    big = "".join(
        f"<div><b>{ratio.median:.2f}×</b>{label}"
        f"<small>{ratio.ci95_low:.2f}–{ratio.ci95_high:.2f}</small></div>"
        for label, ratio in ratios.items()
    )
    return f'<div class="big">{big}</div><p>{escape(headline(report))}</p>'


def _table(report: BenchReport) -> str:
    def cell(content: Cell) -> str:
        spread = f" <small>{escape(content.range)}</small>" if content.range else ""
        return f"<td>{escape(content.value)}{spread}</td>"

    heads = [result.name for result in report.results]
    heads += [f"{result.name} speed-up" for result in compared(report)]
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><th>{escape(row.label)}</th>{''.join(map(cell, (*row.cells, *row.speedups)))}</tr>"
        for row in rows(report)
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _facts(pairs: Iterator[tuple[str, str]]) -> str:
    content = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs)
    return f"<dl>{content}</dl>"


__all__ = [
    "MissingPlotlyError",
    "figure_html",
    "items",
    "page_of",
    "render_page",
    "require_plotly",
    "section",
]
