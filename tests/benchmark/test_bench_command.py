"""`laco bench` from the command line to its files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.cli import run
from laco_runtimes import bundle as bundle_module
from tests.benchmark.fakes import Bench

FAST = ("--runs", "2", "--warmup", "1", "--new-tokens", "3")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the default files go."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("bundle", [("laco", "uncompressed")], indirect=True)
def test_real_graphs_are_measured_into_both_files(bundle: Path, in_folder: Path) -> None:
    assert run(["bench", str(bundle), *FAST]) == 0
    report = BenchReport.model_validate_json((in_folder / "bench.json").read_bytes())
    laco, uncompressed = report.results
    assert (laco.visual_tokens, uncompressed.visual_tokens) == (4, 16)
    assert laco.request_ms.median > laco.ttft_ms.median > laco.prefill_ms.median > 0
    assert all(one.peak_memory_bytes or one.peak_memory_note for one in report.results)
    assert (in_folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in in_folder.iterdir()) == ["bench.json", "report.html"]


def test_json_on_standard_output_is_one_line_and_the_table_is_elsewhere(
    bundle: Path, bench: Bench, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(bundle), *FAST, "--no-memory", "--no-html", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert BenchReport.model_validate(json.loads(out)).settings.runs == 2
    assert "tokens per second" in err
    assert list(in_folder.iterdir()) == []


def test_without_files_only_the_table_is_left(
    bundle: Path, bench: Bench, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(bundle), *FAST, "--no-memory", "--no-html", "--no-json"]) == 0
    assert "uncompressed" in capsys.readouterr().out
    assert list(in_folder.iterdir()) == []


def test_missing_plotly_is_found_before_the_measurement(
    bundle: Path,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == "plotly" else real(name, *rest)

    monkeypatch.setattr("laco_deploy.benchmark.page.find_spec", find_spec)
    assert run(["bench", str(bundle), *FAST, "--no-memory"]) == 1
    message = capsys.readouterr().err
    assert "laco-deploy[report]" in message
    assert "--no-html" in message
    assert not bench.calls
    assert run(["bench", str(bundle), *FAST, "--no-memory", "--no-html"]) == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--json", "ENGINE/bench.json"), "inside the bundle"),
        (("--html", "ENGINE/new/../report.html"), "inside the bundle"),
        (("--json", "nowhere/bench.json"), "folder that exists"),
        (("--html", "."), "folder that exists"),
        (("--json", "one", "--html", "./one"), "two files"),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_the_measurement(
    arguments: tuple[str, ...],
    word: str,
    bundle: Path,
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.replace("ENGINE", str(bundle)) for argument in arguments]
    assert run(["bench", str(bundle), *FAST, "--no-memory", *given]) == 2
    assert word in " ".join(capsys.readouterr().err.split())
    assert not bench.calls


def test_file_that_fails_to_be_written_leaves_the_old_one(
    bundle: Path,
    bench: Bench,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (in_folder / "bench.json").write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module.os, "fsync", full)
    assert run(["bench", str(bundle), *FAST, "--no-memory"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (in_folder / "bench.json").read_text() == "old"
    assert [path.name for path in in_folder.iterdir()] == ["bench.json"]


def test_wrong_number_is_a_wrong_argument(bundle: Path) -> None:
    assert run(["bench", str(bundle), "--runs", "0"]) == 2
