"""`laco bench` from the command line to its files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.cli import run
from laco_runtimes import bundle as bundle_module
from tests.benchmark.fakes import Bench

FAST = ("--runs", "2", "--warmup", "1", "--new-tokens", "3", "--no-limits")


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
    assert "visual tokens" in err
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


QUIET = ("--no-html", "--no-memory")


def measured(path: Path) -> BenchReport:
    return BenchReport.model_validate_json(path.read_bytes())


@pytest.fixture
def first(bundle: Path, bench: Bench, in_folder: Path) -> Path:
    """A measurement beside its bundle, with settings that are all not the default."""
    photo = bundle.parent / "photo.png"
    Image.new("RGB", (12, 10), "teal").save(photo)
    options = ("--image", str(photo), "--prompt", "Why?", "--new-tokens", "3,5", "--threads", "1")
    assert (
        run(["bench", str(bundle), *FAST[:4], *QUIET, "--no-energy", "--no-limits", *options]) == 0
    )
    path = bundle.parent / "bench.json"
    (in_folder / "bench.json").rename(path)
    return path


def test_repeat_asks_for_the_same_again(first: Path, in_folder: Path) -> None:
    assert run(["bench", "--repeat", str(first), "--no-html"]) == 0
    before, after = measured(first), measured(in_folder / "bench.json")
    assert after.settings == before.settings
    assert after.bundles == before.bundles
    assert [one.name for one in after.results] == [one.name for one in before.results]
    assert after.settings.new_tokens == (3, 5)


def test_option_beside_repeat_replaces_its_own(first: Path, in_folder: Path) -> None:
    assert run(["bench", "--repeat", str(first), "--no-html", "--runs", "4"]) == 0
    settings = measured(in_folder / "bench.json").settings
    assert (settings.runs, settings.prompt) == (4, "Why?")


def test_repeat_with_another_picture_or_no_bundle_is_refused(
    first: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (12, 10), "red").save(other)
    again = ["bench", "--repeat", str(first), "--no-html"]
    assert run([*again, "--image", str(other)]) == 2
    assert "is not the picture" in " ".join(capsys.readouterr().err.split())
    bundle.rename(tmp_path / "moved")
    assert run(again) == 2
    assert "is not here" in " ".join(capsys.readouterr().err.split())
    assert run([*again[:1], str(tmp_path / "moved"), *again[1:]]) == 0
    assert "not the bundle" not in capsys.readouterr().out


def test_repeat_of_another_bundle_says_so(
    first: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "laco.json").write_bytes((bundle / "laco.json").read_bytes() + b"\n")
    assert run(["bench", "--repeat", str(first), "--no-html"]) == 2
    assert run(["bench", str(bundle), "--repeat", str(first), "--no-html"]) == 0
    assert "This is not the bundle" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "JSON"), ('{"schema_version": 1}', "1, and 2"), ('{"schema_version": 2}', "no report")],
)
def test_repeat_of_what_is_no_report_is_refused(
    text: str, word: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_folder / "old.json").write_text(text)
    assert run(["bench", "--repeat", "old.json"]) == 2
    assert word in " ".join(capsys.readouterr().err.split())


def test_quick_leaves_the_long_parts_out(
    bundle: Path, bench: Bench, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laco_deploy.cli.bench_job.QUICK_SECONDS", 1.0)
    monkeypatch.setattr("laco_deploy.benchmark.run.run_benchmark", _on(bench))
    assert run(["bench", str(bundle), "--quick", "--no-html"]) == 0
    settings = measured(in_folder / "bench.json").settings
    assert (settings.fresh, settings.energy, settings.limits) == (False, False, False)
    assert settings.new_tokens == (6, 32)
    assert bench.now <= 1.1e9  # seconds of the engines; by default these are 15 of 20


def _on(bench: Bench) -> Any:
    from laco_deploy.benchmark.run import run_benchmark

    return lambda job, **options: run_benchmark(job, **options | {"clock": bench.clock})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "nothing to measure"),
        (("ENGINE", "--ckpt", "ckpt", "--target", "openvino"), "one of the two"),
        (("ENGINE", "--sweep", "after_block=1"), "--ckpt"),
        (("--ckpt", "ckpt"), "--target openvino"),
        (("ENGINE", "--target", "openvino"), "--ckpt"),
        (("--repeat", "bench.json", "--quick"), "Leave --quick out"),
        (("ENGINE", "--new-tokens", "six"), "--new-tokens 6,64,256"),
        (("ENGINE", "--accuracy", "none.json"), "none.json"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...],
    word: str,
    bundle: Path,
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(bundle) if one == "ENGINE" else one for one in arguments]
    assert run(["bench", *given, "--no-html"]) == 2
    assert word in " ".join(capsys.readouterr().err.split())
    assert not bench.calls


def test_wrong_number_is_a_wrong_argument(bundle: Path) -> None:
    assert run(["bench", str(bundle), "--runs", "0"]) == 2
