"""What the report says follows the figures, whichever way they fall."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from laco_deploy.training.compare.cells import Cell, plan, result_path
from laco_deploy.training.compare.findings import OPEN, findings
from laco_deploy.training.compare.report import FIGURES, write_report
from laco_deploy.training.compare.settings import BUDGETS
from laco_deploy.training.compare.statistics import Difference, Spread
from laco_deploy.training.compare.studies import Studies
from laco_runtimes.errors import DataError
from tests.training.compare.made_up import GUESSES, TOTAL, studies, write

FULL = BUDGETS["full"]


def flat(**right: float) -> Callable[[Cell], float]:
    """The same share for all runs of a method; LaCo's for those that are not named."""
    return lambda cell: right.get(cell.method, right["laco"])


def find(made: Studies, about: str) -> str:
    (found,) = (text for text in findings(made) if about in text)
    return found


@pytest.mark.parametrize(
    ("others", "words"),
    [(0.4, "(Table 1): reproduced."), (0.7, "the seeds differ more."), (0.9, "the reverse came")],
)
def test_the_claim_about_the_other_methods_can_fall_either_way(others: float, words: str) -> None:
    right = flat(laco=0.7, pixel_shuffle=others, ldpv2=others, token_packer=others)
    assert words in find(studies(FULL, right), "more accurate than the other methods")


def test_a_collapse_is_told_from_a_drop() -> None:
    for others, words in ((GUESSES / TOTAL + 0.03, ": reproduced."), (0.5, "not reproduced.")):
        right = flat(laco=0.7, pixel_shuffle=others, ldpv2=others, token_packer=others)
        assert words in find(studies(FULL, right), "see next to nothing")


@pytest.mark.parametrize(("gain", "words"), [(0.2, "reproduced."), (-0.2, "the reverse came out.")])
def test_the_shortcut_is_credited_with_what_it_changes(gain: float, words: str) -> None:
    right = {"laco": 0.7, "pixel_shuffle": 0.5, "pixel_shuffle + shortcut": 0.5 + gain}
    assert words in find(studies(FULL, flat(**right)), "The shortcut is what")


@pytest.mark.parametrize(
    ("step", "words"), [(0.05, "every step goes up"), (-0.05, "a step down is clear")]
)
def test_places_are_called_monotone_only_where_they_are(step: float, words: str) -> None:
    made = studies(FULL, lambda cell: 0.5 + step * FULL.positions.index(cell.after_block or 3))
    assert words in find(made, "Later places")


def test_rates_are_blamed_only_where_the_gap_grows() -> None:
    def slow_hurts(cell: Cell) -> float:
        others = cell.method != "laco" and cell.rates == "slow_merger"
        return 0.4 if others else 0.7

    made = studies(FULL, slow_hurts)
    assert "clearly for pixel_shuffle (more)" in find(made, "merger at the tower's rate")
    forgotten = find(studies(FULL, flat(laco=0.7)), "stage 1 leaves out")
    assert "for none of them clearly" in forgotten


def test_missing_runs_leave_claims_open_and_are_named(tmp_path: Path) -> None:
    made = studies(FULL, flat(laco=0.7))
    write(tmp_path, made)
    for cell in plan(FULL):
        if cell.kind == "token_packer" or cell.after_block == 12:
            result_path(tmp_path, cell).unlink()
    text = write_report(FULL, tmp_path, tmp_path / "docs").read_text()
    assert "**Not finished:**" in text
    assert "token_packer-after-3-scaled-seed-0" in text
    assert "not complete yet" in text
    assert OPEN in text


def test_the_page_has_every_figure_and_every_result(tmp_path: Path) -> None:
    write(tmp_path, studies(FULL, flat(laco=0.7, pixel_shuffle=0.6)))
    page = write_report(FULL, tmp_path, tmp_path / "docs")
    text = page.read_text()
    assert "Not finished" not in text
    for name in FIGURES:
        assert f"(comparison/{name}.svg)" in text
        for ending in ("svg", "png"):
            assert (page.parent / "comparison" / f"{name}.{ending}").stat().st_size > 5_000
    with (page.parent / "comparison" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(plan(FULL))
    assert {row["method"] for row in rows} >= {"laco", "no merger", "pixel_shuffle + shortcut"}


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no result yet"):
        write_report(FULL, tmp_path, tmp_path / "docs")


def test_intervals_are_those_of_student() -> None:
    apart = Difference.of([0.01, 0.02, 0.03])
    assert (apart.mean, apart.pairs) == (pytest.approx(0.02), 3)
    assert apart.low == pytest.approx(0.02 - 4.303 * 0.01 / 3**0.5)
    assert not apart.is_clear  # 0.02 - 0.0248 < 0
    assert Difference.of([0.03, 0.03, 0.031]).is_clear
    assert not Difference.of([0.9]).is_clear
    assert Spread.of([0.5]).deviation is None
    assert Spread.of([0.4, 0.6]).deviation == pytest.approx(0.1414, abs=1e-4)
