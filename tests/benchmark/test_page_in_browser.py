"""A real headless Chromium opens the pages: nothing is complained of, nothing asked for, all drawn.

Left out where no Chromium is installed; `CHROMIUM=/path/to/it` names one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from laco_deploy.benchmark.changes import changes
from laco_deploy.benchmark.changes_view import render_changes
from laco_deploy.benchmark.page import PLOTS, render_page
from tests.benchmark.browser import Browser, find_browser, open_browser
from tests.benchmark.made import report_of, sweep_of

PROGRAM = find_browser()
EVIL = "</script><script>alert(1)</script><img src=http://127.0.0.1:9/x>"
MARKS = """
Object.fromEntries([...document.querySelectorAll('.plotly-graph-div')].map(plot => [
  plot.id,
  [...plot.querySelectorAll('.barlayer .point path, .scatterlayer .point')].filter(mark => {
    const box = mark.getBoundingClientRect();
    return box.width > 0 && box.height > 0;
  }).length,
]))
"""
"""Marks that have a size, by the name of their plot."""

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with open_browser(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_browser_notices_requests_errors_and_empty_plots(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<div class=plotly-graph-div id=empty></div><img src=none.png>"
        "<script>console.error('wrong'); nothing();</script>"
    )
    visit = browser.visit(page, MARKS)
    assert [url.rsplit("/", 1)[1] for url in visit.requests] == ["bad.html", "none.png"]
    assert any("wrong" in one for one in visit.complaints)
    assert any("nothing is not defined" in one for one in visit.complaints)
    assert visit.value == {"empty": 0}


def test_sweep_is_drawn_whole_and_quietly_on_a_desk_and_on_a_phone(
    browser: Browser, tmp_path: Path
) -> None:
    report = report_of(sweep_of((2, 6, 12), ("fp32", "int8")), prompt=EVIL)
    page = tmp_path / "report.html"
    page.write_text(
        render_page(report, {one.name: 50.0 + len(one.point) for one in report.results}),
        encoding="utf-8",
    )
    entries, laco, rounds = 8, 6, report.settings.runs
    expected = {
        "stages": 4 * entries,
        "depth": 2 * laco,
        "lengths": 4 * laco,  # first token and three lengths
        "pareto": entries,
        "memory": entries,
        "energy": 2 * entries,  # two meters that are counted
        "limits": 2 * entries,  # two stages
        "rounds": 2 * rounds * entries,
    }
    assert expected.keys() == {plot.name for plot in PLOTS}
    for width in (1100, 420):
        visit = browser.visit(page, MARKS, width=width)
        assert visit.complaints == []
        assert visit.requests == [page.as_uri()]
        assert visit.value == expected
        overflow = "document.documentElement.scrollWidth <= innerWidth"
        assert browser.evaluate(overflow), f"the page is wider than {width} pixels"


def test_comparison_is_drawn_whole_and_quietly(browser: Browser, tmp_path: Path) -> None:
    before, after = report_of(seed=1), report_of(seed=2, slower=1.3)
    found = changes(before, after)
    page = tmp_path / "changes.html"
    page.write_text(render_changes(before, after, found), encoding="utf-8")
    visit = browser.visit(page, MARKS)
    assert (visit.complaints, visit.requests) == ([], [page.as_uri()])
    assert visit.value == {"changes": len(found)}
    names = "document.querySelectorAll('#changes .ytick').length"
    assert browser.evaluate(names) == len(found)
