"""Accuracies come from a file that says what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from laco_deploy.benchmark.accuracy import AccuracyFileError, read_accuracies


def write(folder: Path, text: str) -> Path:
    path = folder / "results.json"
    path.write_text(text)
    return path


def test_a_number_is_the_accuracy(tmp_path: Path) -> None:
    path = write(tmp_path, '{"laco": 61.5, "uncompressed": 63}')
    assert read_accuracies(path) == {"laco": 61.5, "uncompressed": 63.0}


def test_several_benchmarks_become_their_mean(tmp_path: Path) -> None:
    path = write(tmp_path, '{"laco": {"GQA": 60, "TextVQA": 50}, "b": {"TextVQA": 1, "GQA": 2}}')
    assert read_accuracies(path) == {"laco": 55.0, "b": 1.5}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("nonsense", "no accuracies"),
        ("[1]", "no accuracies"),
        ('{"laco": "high"}', "laco"),
        ('{"laco": -1}', "laco"),
        ('{"laco": NaN}', "laco"),
        ('{"laco": {}}', "laco"),
        ('{"laco": {"GQA": 60}, "b": {"TextVQA": 1}}', "different benchmarks"),
        ('{"laco": {"GQA": 60}, "b": 1}', "different benchmarks"),
    ],
)
def test_what_is_no_accuracy_is_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(AccuracyFileError, match=word):
        read_accuracies(write(tmp_path, text))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AccuracyFileError, match="cannot be read"):
        read_accuracies(tmp_path / "none.json")
