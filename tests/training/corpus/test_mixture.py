"""Mixtures: which samples make an epoch, and the files that say so."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from laco_deploy.training.corpus import Corpus, MixtureEntry, read_mixture
from laco_runtimes.errors import DataError
from tests.training.corpus.samples import (
    CONTENT,
    llava_entries,
    turns,
    write_json,
    write_jsonl,
    write_parquet,
    write_shard,
)


def numbered(folder: Path, name: str, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"id": f"{name}{i}", "conversations": turns("q", "a")} for i in range(count)]
    return write_jsonl(folder / f"{name}.jsonl", entries)


def names(corpus: Corpus) -> list[str]:
    return [corpus[i].name for i in range(len(corpus))]


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("first:25%", range(3)),  # rounded up, as LLaVA does
        ("end:2", range(8, 10)),
        ("end:0", ()),
        ("first:99", range(10)),
        ("end:100%", range(10)),
    ],
)
def test_the_part_asked_for_is_taken(take: str, expected: Any) -> None:
    rows = MixtureEntry(Path("x"), take=take).rows(10, np.random.default_rng(0))
    assert rows.tolist() == list(expected)


@settings(deadline=None)
@given(length=st.integers(0, 50), count=st.integers(0, 60), seed=st.integers(0, 5))
def test_a_random_part_is_drawn_without_repeats_and_again_the_same(
    length: int, count: int, seed: int
) -> None:
    entry = MixtureEntry(Path("x"), take=f"random:{count}")
    rows = entry.rows(length, np.random.default_rng(seed)).tolist()
    assert rows == entry.rows(length, np.random.default_rng(seed)).tolist()
    assert len(set(rows)) == len(rows) == min(count, length)
    assert rows == sorted(rows)
    assert set(rows) <= set(range(length))


@settings(deadline=None)
@given(length=st.integers(0, 50), weight=st.floats(0.01, 5), seed=st.integers(0, 5))
def test_a_weight_is_how_often_each_sample_is_seen(length: int, weight: float, seed: int) -> None:
    rows = MixtureEntry(Path("x"), weight=weight).rows(length, np.random.default_rng(seed))
    counts = Counter(rows.tolist())
    assert abs(len(rows) - weight * length) <= 0.5 + 1e-9
    assert all(int(weight) <= counts[i] <= int(weight) + 1 for i in range(length))


def test_a_mixture_of_all_formats_is_one_list(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", llava_entries(tmp_path))
    write_parquet(tmp_path / "b.parquet")
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "000.tar", CONTENT[:2])
    write_shard(tmp_path / "shards" / "001.tar", CONTENT[2:])
    numbered(tmp_path / "elsewhere", "n", 4)
    settings = {
        "datasets": [
            {"path": "a.json", "weight": 2},
            {"path": "b.parquet", "take": "end:1"},
            {"path": "shards"},
            {"json_path": "elsewhere/n.jsonl", "sampling_strategy": "first:50%"},
        ]
    }
    path = tmp_path / "mixture.yaml"
    path.write_text(yaml.safe_dump(settings))
    corpus = Corpus(read_mixture(path))
    own = [name for name, _, _ in CONTENT]
    assert names(corpus) == [*own, *own, own[-1], *own, "n0", "n1"]
    assert corpus.kinds() == {"llava": 10, "parquet": 1, "webdataset": 4}
    as_json = tmp_path / "mixture.json"
    as_json.write_text(json.dumps(settings))
    assert names(Corpus(read_mixture(as_json))) == names(corpus)


def test_images_start_from_media_root(tmp_path: Path) -> None:
    entries = llava_entries(tmp_path / "images")
    write_json(tmp_path / "a.json", entries)
    mixture = tmp_path / "m.yaml"
    mixture.write_text("datasets: [{path: a.json, media_root: images, name: mine}]")
    corpus = Corpus(read_mixture(mixture))
    assert corpus[0].images == (tmp_path / "images" / "one.png",)
    assert corpus.entries[0].label == "mine"


def test_random_parts_differ_between_entries_and_seeds(tmp_path: Path) -> None:
    path = numbered(tmp_path, "n", 40)
    entry = MixtureEntry(path, take="random:20")
    corpus = Corpus([entry, entry], seed=1)
    assert names(corpus)[:20] != names(corpus)[20:]
    assert names(corpus) == names(Corpus([entry, entry], seed=1))
    assert names(corpus) != names(Corpus([entry, entry], seed=2))


def test_the_fingerprint_changes_with_data_settings_and_seed(tmp_path: Path) -> None:
    path = numbered(tmp_path, "n", 4)
    found = [
        Corpus([MixtureEntry(path)]),
        Corpus([MixtureEntry(path)], seed=1),
        Corpus([MixtureEntry(path, weight=2)]),
        Corpus([MixtureEntry(path, take="first:4")]),
        Corpus([MixtureEntry(path)] * 2),
        Corpus([MixtureEntry(numbered(tmp_path, "m", 4))]),
    ]
    assert len({corpus.fingerprint for corpus in found}) == len(found)
    moved = tmp_path / "moved.jsonl"
    path.rename(moved)
    assert Corpus([MixtureEntry(moved)]).fingerprint == found[0].fingerprint


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[", "cannot be read as a mixture"),
        ("- a", "names no data sets"),
        ("datasets: []", "names no data sets"),
        ("datasets: [a]", "'a', which is not known"),
        ("datasets: [{path: n.jsonl, wieght: 2}]", "'wieght', which is not known"),
        ("datasets: [{weight: 2}]", "without a path"),
        ("datasets: [{path: n.jsonl, weight: two}]", "weight = 'two'"),
        ("datasets: [{path: n.jsonl, weight: true}]", "weight = True"),
        ("datasets: [{path: n.jsonl, weight: 0}]", "Give one above 0"),
        ("datasets: [{path: n.jsonl, weight: .nan}]", "Give one above 0"),
        ("datasets: [{path: n.jsonl, take: some}]", "which is not known"),
        ("datasets: [{path: n.jsonl, take: 'first:-1'}]", "which is not known"),
        ("datasets: [{path: n.jsonl, take: 'first:1', weight: 2}]", "both a weight and take"),
        ("datasets: [{path: n.jsonl, kind: pickle}]", "unknown kind of data 'pickle'"),
        ("datasets: [{path: nothing.jsonl}]", "no data at"),
        ("datasets: [{path: n.csv}]", "not known by its ending"),
        ("datasets: [{path: '!!python/object:os.system'}]", "no data at"),
        ("datasets: !!python/object/apply:os.system ['true']", "cannot be read as a mixture"),
    ],
)
def test_a_mixture_file_that_says_something_else_is_refused(
    tmp_path: Path, text: str, fault: str
) -> None:
    numbered(tmp_path, "n", 2)
    (tmp_path / "n.csv").write_text("a")
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(DataError, match=fault):
        read_mixture(tmp_path / "m.yaml")


def test_folders_of_no_data_or_of_several_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data files"):
        read_mixture(tmp_path)
    numbered(tmp_path, "n", 2)
    write_shard(tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"several kinds \(llava, webdataset\)"):
        read_mixture(tmp_path)
    assert MixtureEntry(tmp_path, kind="webdataset").files() == (
        (tmp_path / "a.tar", "webdataset"),
    )


def test_an_empty_mixture_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [])
    with pytest.raises(DataError, match="has no samples"):
        Corpus(read_mixture(path))
    with pytest.raises(DataError, match="has no samples"):
        Corpus([])
