"""The page tells what was measured, loads nothing, and stays whole when parts are missing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from laco_deploy.benchmark.page import PLOTS, render_page
from laco_deploy.benchmark.plot import lengths_figure, limits_figure, stages_figure
from laco_deploy.benchmark.plot_style import colours
from laco_deploy.benchmark.plot_sweep import depth_figure, pareto_figure, pareto_front
from laco_deploy.benchmark.remarks import notes, repeat_command
from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.benchmark.table import rows
from tests.benchmark.made import THREE, report_of, sweep_of

EVIL = "</script><img src=x onerror=alert(1)>"
SWEEP = report_of(sweep_of((2, 6, 12), ("fp32", "int8")), noise=0)
THREE_REPORT = report_of()


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._in_code = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_code = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._in_code = False

    def handle_data(self, data: str) -> None:
        if not self._in_code:
            self.text.append(data)

    def plots(self) -> set[str]:
        ids = {attributes.get("id") for _, attributes in self.elements}
        return {plot.name for plot in PLOTS} & ids


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody parses 5 MB of code here; the browser runs it in another test."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")


def test_page_loads_nothing() -> None:
    page = _Page(render_page(THREE_REPORT))
    tags = [tag for tag, _ in page.elements]
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(tags)
    for _, attributes in page.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "data", "action"}
    [policy] = [
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_page_brings_plotly_and_a_plot_of_everything_that_was_measured() -> None:
    text = render_page(THREE_REPORT)
    assert "/* plotly.js */" in text
    everything = {plot.name for plot in PLOTS}
    assert _Page(text).plots() == everything - {"depth", "pareto"}
    accuracies = {one.name: 50.0 for one in SWEEP.results}
    assert _Page(render_page(SWEEP, accuracies)).plots() == everything


def test_page_tells_the_numbers_the_machine_and_the_command() -> None:
    report = THREE_REPORT
    text = "\n".join(_Page(render_page(report)).text)
    assert report.machine.cpu_model in text
    assert repeat_command(report) in text
    assert report.bundle.manifest_sha256 in text
    for note in notes(report):
        assert note in text
    for row in rows(report):
        for cell in (*row.cells, *row.speedups):
            assert cell.value in text
            assert cell.range in text


@pytest.mark.parametrize(
    ("report", "gone", "reason"),
    [
        (report_of(THREE[:1]), "lengths", "no uncompressed baseline"),
        (report_of(energy=False), "energy", "no permission to read RAPL"),
        (report_of(limits=False, failed={"limits": "no room"}), "limits", "no room"),
    ],
    ids=["baseline", "energy", "limits"],
)
def test_missing_part_leaves_the_rest_and_its_section_says_why(
    report: BenchReport, gone: str, reason: str
) -> None:
    text = render_page(report)
    assert _Page(text).plots() == {plot.name for plot in PLOTS} - {"depth", "pareto", gone}
    title = next(plot.title for plot in PLOTS if plot.name == gone)
    [section] = re.findall(f"<section><h2>{re.escape(title)}</h2>(.*?)</section>", text)
    assert reason in section


def test_text_of_a_stranger_stays_text_in_the_page() -> None:
    def tags(report: BenchReport) -> list[str]:
        return [tag for tag, _ in _Page(render_page(report, {EVIL: 1.0, "laco": 2.0})).elements]

    found: dict[str, Any] = report_of(prompt=EVIL).model_dump()
    found["bundles"][0]["name"] = found["results"][0]["bundle"] = EVIL
    for result in found["results"]:
        result["bundle"] = EVIL
    found["results"][0]["name"] = found["limits"]["variants"][0]["name"] = EVIL
    found["settings"]["device"] = found["machine"]["cpu_model"] = EVIL
    plain = report_of(failed={"x": "y"})
    found["failed"] = {EVIL: EVIL}
    assert tags(BenchReport.model_validate(found)) == tags(plain)


def test_accuracy_of_an_entry_that_is_not_there_is_said() -> None:
    assert "given for &#x27;other&#x27;" in render_page(THREE_REPORT, {"other": 1.0, "laco": 2.0})


def test_bars_of_the_stages_are_the_medians() -> None:
    figure = stages_figure(THREE_REPORT)
    assert [bar.name for bar in figure.data] == ["preprocess", "vision encoder", "embed", "prefill"]
    expected = [one.prefill_ms.median for one in THREE_REPORT.results]
    assert list(figure.data[3].x) == expected
    assert len(set(figure.data[0].y)) == 3


def test_speedup_falls_with_the_length_of_the_answer_in_the_plot_as_in_the_report() -> None:
    figure = lengths_figure(THREE_REPORT)
    assert not isinstance(figure, str)
    assert [line.name for line in figure.data] == ["laco", "external (for latency only)"]
    laco = figure.data[0]
    assert list(laco.x) == [1, 6, 64, 256]
    answers = THREE_REPORT.results[0].answers
    ratios = [one.speedup_over_uncompressed for one in answers]
    assert list(laco.y)[1:] == [one.median for one in ratios if one is not None]
    assert list(laco.y) == sorted(laco.y, reverse=True)


def test_depth_has_a_line_per_precision_and_the_fitted_law() -> None:
    figure = depth_figure(SWEEP)
    assert not isinstance(figure, str)
    laco = figure.data[0]
    assert laco.name == "laco precision=fp32"
    assert list(laco.x) == [2 / 24, 6 / 24, 12 / 24]
    assert list(laco.y) == pytest.approx([35, 65, 110])
    law = figure.data[-1]
    assert list(law.y) == pytest.approx([0.6 * 20, 0.6 * 200])
    assert "12.0 + 108.0 × k/L ms, R² 1.0000" in law.name


def test_depth_is_left_out_without_a_sweep() -> None:
    assert depth_figure(THREE_REPORT) == ""


def test_limits_are_shown_in_percent() -> None:
    figure = limits_figure(THREE_REPORT)
    assert not isinstance(figure, str)
    assert [list(bar.y) for bar in figure.data] == [[50.0, 50.0]] * 3


def test_pareto_front_is_what_nothing_beats() -> None:
    points = {"fast": (1.0, 50.0), "good": (5.0, 60.0), "bad": (5.0, 55.0), "twin": (1.0, 50.0)}
    assert pareto_front(points) == {"fast", "good", "twin"}


def test_pareto_needs_an_accuracy_of_something_measured() -> None:
    assert pareto_figure(THREE_REPORT, {}) == ""
    assert "other" in str(pareto_figure(THREE_REPORT, {"other": 1.0}))


def test_entries_have_colours_of_their_own() -> None:
    for report in (THREE_REPORT, SWEEP):
        found = colours(report)
        assert len(set(found.values())) == len(found) == len(report.results)
