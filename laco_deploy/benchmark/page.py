"""A report as one HTML file that needs nothing else: no server, no network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from string import Template
from typing import TYPE_CHECKING

from laco_deploy.benchmark.plot import rounds_figure, stages_figure
from laco_deploy.benchmark.schema import BASELINE, BenchReport
from laco_deploy.benchmark.table import (
    Cell,
    compared,
    headline,
    notes,
    repeat_command,
    rows,
)
from laco_runtimes.errors import MissingPackageError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class MissingPlotlyError(MissingPackageError):
    """The page cannot be drawn; everything else works without."""

    def __init__(self) -> None:
        super().__init__("plotly", "report")
        self.msg = f"{self.msg} To measure without the page: laco bench --no-html"


def require_plotly() -> None:
    """Find out before a long measurement, not after it.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    if find_spec("plotly") is None:
        raise MissingPlotlyError


def render_page(report: BenchReport) -> str:
    """The whole page, plotly's code (about 5 MB) included.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    require_plotly()
    from plotly.offline import get_plotlyjs

    template = Template((files("laco_deploy.benchmark") / "page.html").read_text(encoding="utf-8"))
    settings = report.settings
    return template.substitute(
        title=escape(f"laco bench: {report.bundle.name}"),
        where=escape(f"{settings.engine} on {settings.device}, {report.created}"),
        plotly=get_plotlyjs(),
        headline=_headline(report),
        stages=_figure(stages_figure(report), "stages"),
        rounds=_figure(rounds_figure(report), "rounds"),
        table=_table(report),
        notes=_list(notes(report)),
        facts=_facts(report),
        command=escape(repeat_command(report)),
    )


def _headline(report: BenchReport) -> str:
    laco, baseline = report.results[0], report.result(BASELINE)
    speedup = laco.speedup_over_uncompressed
    if speedup is None or baseline is None:
        return f"<p>{escape(headline(report))}</p>"
    ratios = {
        "to the first token": speedup.ttft,
        "vision encoder": speedup.vision_encode,
        "whole request": speedup.request,
    }
    big = "".join(
        f"<div><b>{ratio.median:.2f}×</b>{label}<small>{ratio.p10:.2f}–{ratio.p90:.2f}</small></div>"
        for label, ratio in ratios.items()
    )
    return (
        f'<div class="big">{big}</div><p>as fast as the uncompressed model on this machine, with '
        f"{laco.visual_tokens} visual tokens instead of {baseline.visual_tokens}.</p>"
    )


def _figure(figure: Figure, name: str) -> str:
    return str(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            default_height=f"{figure.layout.height}px",
            config={"displayModeBar": False, "responsive": True},
        )
    )


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


def _facts(report: BenchReport) -> str:
    machine, settings, image = report.machine, report.settings, report.settings.image
    memory = "unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 1e9:.1f} GB"
    load = machine.load_average_1min
    facts = {
        "processor": f"{machine.cpu_model}, {machine.architecture}",
        "cores usable": str(machine.usable_cores),
        "memory": memory,
        "load before the start": "unknown" if load is None else f"{load:.2f}",
        "system": f"{machine.os}, Python {machine.python}",
        "packages": _pairs(machine.packages),
        "engine": f"{settings.engine} on {settings.device} ({settings.device_reason})",
        "threads": "the engine's choice" if settings.threads is None else str(settings.threads),
        "precision": _pairs(report.bundle.precision),
        "image": f"{image.name or 'synthetic'}, {image.width}x{image.height}, "
        f"{image.size_bytes / 1000:.0f} kB",
        "prompt": settings.prompt,
        "bundle": f"{report.bundle.name}, laco.json SHA-256 {report.bundle.manifest_sha256}",
    }
    rows = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()
    )
    return f"<dl>{rows}</dl>"


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


__all__ = ["render_page", "require_plotly"]
