"""`laco report` from the command line to its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.cli import run
from tests.benchmark.made import THREE, Made, report_of


def write(path: Path, report: BenchReport) -> str:
    path.write_text(report.model_dump_json())
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A report and one of a vision encoder that takes 30 % longer."""
    return (
        write(tmp_path / "a.json", report_of(seed=1, noise=0.01)),
        write(tmp_path / "b.json", report_of(seed=2, noise=0.01, slower=1.3)),
    )


def test_one_report_is_shown_again_with_its_page_and_accuracies(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, results = tmp_path / "report.html", tmp_path / "results.json"
    results.write_text('{"laco": 61.2, "uncompressed": 63}')
    assert run(["report", files[0], "--html", str(page), "--accuracy", str(results)]) == 0
    assert "as fast to the first token" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert 'id="pareto"' in text


def test_a_pipe_gets_the_whole_table_however_narrow_the_terminal(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run(["report", files[0]]) == 0
    text = capsys.readouterr().out
    assert "laco speed-up" in text
    assert "256 tokens, per second" in text


def test_regression_is_shown_and_is_an_error_only_on_request(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "changes.html"
    assert run(["report", *files, "--html", str(page)]) == 0
    assert " worse, 0 better" in capsys.readouterr().out
    assert 'class="worse"' in page.read_text(encoding="utf-8")
    assert run(["report", *files, "--fail-on-regression"]) == 3
    assert "laco: vision encoder" in " ".join(capsys.readouterr().err.split())
    assert run(["report", *reversed(files), "--fail-on-regression"]) == 0
    assert run(["report", *files, "--fail-on-regression", "--tolerance", "50"]) == 0


def test_reports_without_a_common_entry_are_refused(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = report_of([Made(name="z", variant="laco", vision_ms=1, prefill_ms=1, baseline=None)])
    assert run(["report", files[0], write(tmp_path / "c.json", other)]) == 2
    assert "nothing to compare" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("A", "--fail-on-regression"), "Name a second one"),
        (("A", "B", "--accuracy", "A", "--html", "x.html"), "page of one report"),
        (("A", "--accuracy", "A"), "page of one report"),
        (("A", "B", "--tolerance", "-1"), "0 to 100"),
        (("A", "--html", "A"), "to be read and to be written"),
        (("A", "--html", "FOLDER"), "folder that exists"),
        (("A", "--html", "FOLDER/none/x.html"), "folder that exists"),
        (("FOLDER/none.json",), "cannot be read"),
        (("BROKEN",), "not JSON"),
        (("OLD",), "version 1"),
        (("A", "--html", "FOLDER/x.html", "--accuracy", "A"), "no accuracies"),
    ],
)
def test_what_has_no_meaning_is_refused_and_nothing_written(
    arguments: tuple[str, ...],
    word: str,
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "old.json").write_text('{"schema_version": 1}')
    places = {"A": files[0], "B": files[1], "FOLDER": str(tmp_path)}
    places |= {"BROKEN": str(tmp_path / "broken.json"), "OLD": str(tmp_path / "old.json")}
    given = [
        places.get(one, one.replace("FOLDER", str(tmp_path)) if "FOLDER/" in one else one)
        for one in arguments
    ]
    before = sorted(tmp_path.iterdir())
    assert run(["report", *given]) == 2
    assert word in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.iterdir()) == before


def test_report_that_contradicts_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(report_of(THREE).model_dump_json())
    found["results"][0]["ttft_ms"]["p10"] = 1e9
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(found))
    assert run(["report", str(path)]) == 2
    assert "results.0.ttft_ms" in " ".join(capsys.readouterr().err.split())
