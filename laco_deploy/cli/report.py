"""`laco report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from laco_deploy.terminal import say, show
from laco_runtimes.errors import ArgumentError, LacoError

if TYPE_CHECKING:
    from laco_deploy.benchmark.schema import BenchReport


class RegressionError(LacoError, RuntimeError):
    """Something became slower or larger, and that was to be an error."""

    exit_code = 3


def report(
    first: Path,
    second: Path | None = None,
    /,
    *,
    html: Path | None = None,
    accuracy: Path | None = None,
    tolerance: float = 2.0,
    fail_on_regression: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show a bench.json again, or compare two: machines, versions or bundles.

    A quantity is worse or better where the confidence interval of its ratio, widened for the number
    of comparisons, does not hold 1. Between two runs on a busy machine trust the speed-ups: they
    compare requests of the same round.

    Examples:

    * `laco report bench.json --html report.html --accuracy results.json`
    * `laco report before.json after.json`
    * `laco report main.json branch.json --fail-on-regression`

    Parameters
    ----------
    first
        File that `laco bench --json` wrote.
    second
        Another one, to be compared with the first: what is worse is worse here.
    html
        File for a page with charts (needs the extra `report`).
    accuracy
        JSON file with accuracies by variant, such as `{"laco": 61.2, "uncompressed": 63.0}`, for a
        plot of accuracy against latency. For one report and with --html.
    tolerance
        Percent of change that is of no interest, however certain.
    fail_on_regression
        End with exit code 3 where anything became worse.
    """
    from laco_deploy.benchmark.page import require_plotly
    from laco_deploy.benchmark.read import read_report

    _check(first, second, html, accuracy, tolerance, fail_on_regression)
    if html is not None:
        require_plotly()
    before = read_report(first)
    if second is None:
        _show(before, html, accuracy)
    else:
        _compare(before, read_report(second), html, tolerance / 100, fail_on_regression)


def _check(
    first: Path,
    second: Path | None,
    html: Path | None,
    accuracy: Path | None,
    tolerance: float,
    fail_on_regression: bool,
) -> None:
    """Refuse what has no meaning, before anything is read.

    Raises:
        ArgumentError: an option that belongs to one or to two reports, with the other number of
            them; a page in the place of a report or of a folder.
    """
    if second is None and fail_on_regression:
        raise ArgumentError("--fail-on-regression compares two reports. Name a second one.")
    if accuracy is not None and (second is not None or html is None):
        raise ArgumentError("--accuracy is for the page of one report. Give one, and --html.")
    if not 0 <= tolerance < 100:
        raise ArgumentError(f"--tolerance cannot be {tolerance:g} %. Give 0 to 100.")
    if html is None:
        return
    page = html.resolve()
    if page.is_dir() or not page.parent.is_dir():
        raise ArgumentError(f"'{html}' cannot be written. Name a file in a folder that exists.")
    if page in (path.resolve() for path in (first, second, accuracy) if path is not None):
        raise ArgumentError(f"'{html}' is to be read and to be written. Name another --html.")


def _show(report: BenchReport, html: Path | None, accuracy: Path | None) -> None:
    from laco_deploy.benchmark.accuracy import read_accuracies
    from laco_deploy.benchmark.page import render_page
    from laco_deploy.benchmark.remarks import notes
    from laco_deploy.benchmark.table import headline, to_rich

    accuracies = {} if accuracy is None else read_accuracies(accuracy)
    show(to_rich(report))
    for note in notes(report):
        say(note, style="dim")
    say(headline(report), style="bold")
    if html is not None:
        _write(html, render_page(report, accuracies))


def _compare(
    before: BenchReport,
    after: BenchReport,
    html: Path | None,
    tolerance: float,
    fail_on_regression: bool,
) -> None:
    """Table, page and verdict.

    Raises:
        ArgumentError: the reports have no entry in common.
        RegressionError: something is worse, and that was to be an error.
    """
    from laco_deploy.benchmark.changes import changes, regressions
    from laco_deploy.benchmark.changes_view import render_changes, to_rich, verdict
    from laco_deploy.benchmark.differences import comparable, differences

    if not comparable(before, after):
        raise ArgumentError(
            "the two reports have no entry of the same name, so there is nothing to compare: "
            f"{', '.join(one.name for one in before.results)} and "
            f"{', '.join(one.name for one in after.results)}. Measure the same variants."
        )
    found = changes(before, after, tolerance=tolerance)
    show(to_rich(found))
    for difference in differences(before, after):
        say(difference, style="dim")
    say(verdict(found), style="bold")
    if html is not None:
        _write(html, render_changes(before, after, found))
    worse = regressions(found)
    if fail_on_regression and worse:
        names = ", ".join(change.name for change in worse)
        raise RegressionError(f"worse than before: {names}. Find out why, or measure again.")


def _write(path: Path, page: str) -> None:
    from laco_deploy.cli.bench import write_file

    write_file(path, page)
    say(f"page: {path}")


__all__ = ["report"]
