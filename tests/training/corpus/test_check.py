"""`laco data check`: what it counts, what it lists, and when it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from laco_deploy.cli import run
from laco_deploy.training.corpus import ChatOptions, Corpus, TrainingSet, read_mixture
from laco_deploy.training.corpus.check import CheckReport, check, check_entries
from tests.bundles import make_random_checkpoint
from tests.training.corpus.samples import (
    CONTENT,
    llava_entries,
    picture,
    processor,
    turns,
    write_json,
    write_jsonl,
    write_parquet,
    write_shard,
)
from tests.training.corpus.videos import write_video

BAD: list[Any] = [
    {"id": "gone", "image": "gone.png", "conversations": turns("<image>", "a")},
    {"id": "cut", "image": "cut.png", "conversations": turns("<image>", "a")},
    {"id": "marks", "conversations": turns("<image>", "a")},
    {"id": "silent", "conversations": turns("q", "")},
    {"id": "film", "video": "gone.avi", "conversations": turns("<video>", "a")},
    "no object",
]


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """All formats; 6 broken samples, 2 duplicates by id and content, 1 by content alone."""
    entries = llava_entries(tmp_path)
    (tmp_path / "cut.png").write_bytes(picture()[:200])
    write_video(tmp_path / "v.avi", range(0, 100, 10), fps=5)
    film = {"id": "film", "video": "v.avi", "conversations": turns("<video>\nq", "a")}
    twin = {**entries[0], "id": "twin"}
    write_json(tmp_path / "a.json", [*entries, twin, film])
    write_jsonl(tmp_path / "bad.jsonl", BAD)
    write_parquet(tmp_path / "b.parquet", [*CONTENT, CONTENT[1]])
    write_shard(tmp_path / "c.tar", [("own", turns("<image>\nOwn?", "a"), picture(9))])
    path = tmp_path / "mixture.yaml"
    files = ["a.json", "bad.jsonl", "b.parquet", "c.tar"]
    path.write_text(json.dumps({"datasets": [{"path": name, "weight": 2} for name in files]}))
    return path


def checked(path: Path, *, workers: int = 0, **options: Any) -> CheckReport:
    corpus = Corpus(check_entries(read_mixture(path)))
    samples = TrainingSet(corpus, processor(), ChatOptions(**options)) if options else None
    return check(corpus, samples, workers=workers)


@pytest.mark.parametrize("options", [{}, {"max_length": 5000}])
@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_counted(mixture: Path, options: Any, workers: int) -> None:
    report = checked(mixture, workers=workers, **options)
    assert (report.samples, report.broken) == (6 + 6 + 5 + 1, 6)
    assert report.kinds == {"llava": 12, "parquet": 5, "webdataset": 1}
    assert report.faults == {
        "missing_image": 1,
        "broken_image": 1,
        "marker_mismatch": 1,
        "empty_answer": 1,
        "missing_video": 1,
        "unreadable": 1,
    }
    made = report.sources["made"]  # as the samples themselves say
    assert (made.samples, made.images, made.text_only, made.broken) == (11, 8, 3, 0)
    assert (report.sources["bad"].samples, report.sources["bad"].broken) == (6, 6)
    assert report.sources["a"].videos == 1
    # The parquet file repeats the four of the JSON, and one of its own.
    assert (report.same_id, report.same_content) == (5, 6)
    named = {broken.name for broken in report.offenders}
    assert named == {"gone", "cut", "marks", "silent", "film", "bad.jsonl[5]"}


def test_long_samples_are_told_apart_from_those_that_lose_their_image(tmp_path: Path) -> None:
    entries = llava_entries(tmp_path)
    long = {"id": "long", "conversations": turns("word " * 100, "a " * 100)}
    late = {"id": "late", "image": "one.png"}
    late["conversations"] = turns("word " * 100, "a", "<image>", "a")  # type: ignore[assignment]
    path = write_json(tmp_path / "a.json", [*entries, long, late])
    report = checked(path, max_length=150)
    assert (report.cut, report.faults) == (1, {"too_long": 1})
    assert report.longest > 250


def test_the_list_of_offenders_is_bounded(tmp_path: Path) -> None:
    corpus = Corpus(read_mixture(write_jsonl(tmp_path / "a.jsonl", ["x"] * 50)))
    report = check(corpus, show=3)
    assert (report.broken, len(report.offenders)) == (50, 3)


def test_progress_is_told(mixture: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    check(Corpus(read_mixture(mixture)), progress=lambda *step: steps.append(step))
    assert steps[-1] == ("checking", 36, 36)


# The command.


def test_the_command_lists_what_is_broken_and_fails(
    mixture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "check", str(mixture), "--workers", "0"]) == 1
    out, err = capsys.readouterr()
    assert "6 of 18 samples are broken" in err
    assert "missing image: 1" in out
    assert "  bad, gone: there is no image file at" in out
    assert "by kind of file: llava 12, parquet 5, webdataset 1" in out


def test_names_that_are_not_unicode_can_be_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = "\ud800"
    dialogue = turns("<video>", "a")
    entries = [{"id": half, "video": half, "data_source": half, "conversations": dialogue}]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    assert run(["data", "check", str(tmp_path / "a.json"), "--workers", "0"]) == 1
    assert "\\ud800, \\ud800: there is no video" in capsys.readouterr().out


def test_the_command_is_content_with_whole_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_shard(tmp_path / "a.tar")
    assert run(["data", "check", str(path), "--workers", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["samples"], report["broken"]) == (4, 0)
    assert report["sources"]["made"]["images"] == 3


def test_the_command_counts_tokens_with_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_random_checkpoint(tmp_path / "checkpoint")
    entries = llava_entries(tmp_path / "images")
    path = write_json(tmp_path / "a.json", entries)
    words = ["data", "check", str(path), "--image-root", str(tmp_path / "images"), "--json"]
    words += ["--workers", "0", "--ckpt", str(checkpoint)]
    assert run(words) == 0
    longest = json.loads(capsys.readouterr().out)["longest"]
    assert longest > 40
    assert run([*words, "--max-length", "20"]) == 1
    assert json.loads(capsys.readouterr().out)["faults"] == {"too_long": 3}
    assert run([*words, "--style", "plain"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert faults == {"dialogue": 1, "marker_mismatch": 1}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nothing.json"], 1, "no data at|cannot be read"),
        (["{path}", "--max-length", "5"], 2, "Add --ckpt"),
        (["{path}", "--ckpt", "nothing"], 1, "holds no config.json"),
        (["{path}", "--ckpt", "nothing", "--max-length", "0"], 2, "max_length is 0"),
        (["{path}", "--workers", "-1"], 2, "workers"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    path = write_shard(tmp_path / "a.tar")
    given = [word.format(path=path) for word in words]
    assert run(["data", "check", *given]) == code
    assert re.search(message, capsys.readouterr().err)
