"""Readers: the same samples whatever the format, and defects that spoil only their own sample."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laco_deploy.training.corpus import Corpus, MixtureEntry, Record
from laco_deploy.training.corpus.readers import READERS, SUFFIXES, FileSettings
from laco_deploy.training.corpus.record import SampleError
from laco_runtimes.errors import DataError
from tests.training.corpus.samples import (
    CONTENT,
    add_member,
    llava_entries,
    picture,
    turns,
    write_json,
    write_jsonl,
    write_parquet,
    write_shard,
)

FORMATS: dict[str, Callable[[Path], Path]] = {
    "json": lambda folder: write_json(folder / "data.json", llava_entries(folder)),
    "jsonl": lambda folder: write_jsonl(folder / "data.jsonl", llava_entries(folder)),
    "parquet": lambda folder: write_parquet(folder / "data.parquet"),
    "tar": lambda folder: write_shard(folder / "data.tar"),
}


def read(path: Path) -> Any:
    return READERS[SUFFIXES[path.suffix]](FileSettings(path, path.parent, "label"))


def faults(path: Path) -> list[str]:
    """What is wrong with each sample of a file, "" for one that is whole."""
    reader, found = read(path), []
    for index in range(len(reader)):
        try:
            reader[index]
            found.append("")
        except SampleError as error:
            found.append(f"{error.fault}: {error}")
    return found


def contents(record: Record) -> Any:
    images = tuple(one if isinstance(one, bytes) else one.read_bytes() for one in record.images)
    return record.name, record.source, record.turns, images, record.video, record.system


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_records(kind: str, tmp_path: Path) -> None:
    reader = read(FORMATS[kind](tmp_path))
    assert len(reader) == len(CONTENT)
    for index in (2, 0, 3, 1):  # in any order
        name, dialogue, image = CONTENT[index]
        record = reader[index]
        texts = [text for turn in record.turns for text in (turn.question, turn.answer)]
        assert turns(*texts) == dialogue
        assert contents(record)[0:2] == (name, "made")
        assert contents(record)[3:] == (() if image is None else (image,), None, None)


@pytest.mark.parametrize("kind", FORMATS)
def test_estimates_need_no_decoding_and_agree(kind: str, tmp_path: Path) -> None:
    known = read(FORMATS[kind](tmp_path)).estimates
    text = [sum(len(turn["value"].encode()) for turn in turns) for _, turns, _ in CONTENT]
    assert known.text_bytes.tolist() == text
    assert known.images.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("kind", FORMATS)
def test_readers_can_be_pickled_and_used_in_other_processes(kind: str, tmp_path: Path) -> None:
    corpus = Corpus([MixtureEntry(FORMATS[kind](tmp_path))])
    mine = [contents(corpus[i]) for i in range(len(corpus))]  # opened here before the fork
    copy = ForkingPickler.loads(ForkingPickler.dumps(corpus))
    assert [contents(copy[i]) for i in range(len(copy))] == mine
    with get_context("fork").Pool(2) as pool:
        assert [contents(record) for record in pool.map(corpus.__getitem__, range(4))] == mine


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(
    dialogues=st.lists(st.tuples(texts, texts.filter(str.strip), values), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 3]),
    is_ascii=st.booleans(),
    bom=st.sampled_from(["", "\ufeff"]),
)
def test_json_samples_are_found_in_any_layout(
    tmp_path_factory: pytest.TempPathFactory,
    dialogues: list[tuple[str, str, Any]],
    indent: int | None,
    is_ascii: bool,
    bom: str,
) -> None:
    entries = [
        {"extra": extra, "id": i, "conversations": turns(question, answer)}
        for i, (question, answer, extra) in enumerate(dialogues)
    ]
    folder = tmp_path_factory.getbasetemp()
    path = folder / "any.json"
    path.write_text(bom + json.dumps(entries, indent=indent, ensure_ascii=is_ascii), "utf-8")
    lines = folder / "any.jsonl"
    text = "\r\n".join(json.dumps(entry, ensure_ascii=is_ascii) for entry in entries)
    lines.write_bytes((bom + text).encode())
    for reader in (read(path), read(lines)):
        found = [reader[i] for i in range(len(reader))]
        pairs = [(record.turns[0].question, record.turns[0].answer) for record in found]
        assert pairs == [(question, answer) for question, answer, _ in dialogues]


# LLaVA JSON and JSONL.


def test_a_sample_that_is_not_utf8_spoils_only_itself(tmp_path: Path) -> None:
    entries = [{"id": i, "conversations": turns("é?", "HERE")} for i in range(3)]
    text = json.dumps(entries, ensure_ascii=False).encode()
    second = text.index(b"HERE", text.index(b"HERE") + 1)
    for path, data in (
        (tmp_path / "a.json", text[:second] + b"\xff\xfe" + text[second + 2 :]),
        (tmp_path / "a.jsonl", b'{"id": 1, "conversations": [\xff]}\n'),
    ):
        path.write_bytes(data)
        found = faults(path)
        assert sum("not UTF-8" in fault for fault in found) == 1
        assert [bool(fault) for fault in found] in ([False, True, False], [True])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "no object"),
        ("[" * 100_000, "not JSON"),
        ('{"id": 1}', "no list of conversations"),
        ('{"conversations": []}', "dialogue is empty"),
        ('{"conversations": [{"from": "human", "value": "q"}]}', "do not go human, gpt"),
        ('{"conversations": [{"from": "cat", "value": "q"}]}', "no known speaker"),
        ('{"conversations": [{"from": "human", "value": 3}]}', "no known speaker or no text"),
        (json.dumps({"conversations": turns("q", " \n")}), "an answer is empty"),
        (json.dumps({"conversations": turns("\ud800", "a")}), "not valid Unicode"),
        (json.dumps({"image": 3, "conversations": turns("q", "a")}), "is no path"),
        (json.dumps({"image": ["a", None], "conversations": turns("q", "a")}), "is no path"),
        (json.dumps({"video": {}, "conversations": turns("q", "a")}), "is no path"),
    ],
)
def test_broken_lines_are_named_and_spoil_only_themselves(
    tmp_path: Path, line: str, fault: str
) -> None:
    good = json.dumps({"conversations": turns("q", "a")})
    path = tmp_path / "data.jsonl"
    path.write_text(f"{good}\n\n{line}\n{good}")
    found = faults(path)
    assert [bool(one) for one in found] == [False, True, False]
    assert fault in found[1]


@pytest.mark.parametrize("text", ["{}", "", '"a"', "[1, 2", "[1 2]", "[}", "[1,]"])
def test_a_json_file_that_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(DataError, match=r"no list of samples|not JSON from the sample in line 1"):
        read(tmp_path / "data.json")


def test_other_names_of_the_speakers_and_a_system_turn_are_understood(tmp_path: Path) -> None:
    dialogue = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    led = [{"from": "gpt", "value": "Hello!"}, *turns("q", "a")]
    path = write_json(tmp_path / "data.json", [{"conversations": dialogue}, {"conversations": led}])
    first, second = (read(path)[i] for i in range(2))
    assert (first.system, first.turns) == ("Be brief.", second.turns)
    assert second.system is None
    assert (first.name, first.source) == ("data.json[0]", "label")


# Parquet.


def test_parquet_images_may_be_bytes_paths_or_several(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(5))
    dialogue = [turns("<image>", "a")] * 2
    for images, expected in (
        ([picture(1), None], ((picture(1),), ())),
        (["a.png", None], ((tmp_path / "a.png",), ())),
        ([{"bytes": None, "path": "a.png"}] * 2, ((tmp_path / "a.png",),) * 2),
        ([[{"bytes": b"x", "path": None}] * 2, []], ((b"x", b"x"), ())),
    ):
        table = pa.table({"image": pa.array(images), "conversations": dialogue})
        pq.write_table(table, tmp_path / "data.parquet")
        reader = read(tmp_path / "data.parquet")
        assert (reader[0].images, reader[1].images) == expected
        assert reader[1].name == "data.parquet[1]"


def test_parquet_rows_without_a_dialogue_or_image_contents_are_named(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": pa.array([None, {"bytes": None, "path": None}]),
            "conversations": pa.array([None, turns("<image>", "a")]),
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    found = faults(tmp_path / "data.parquet")
    assert "no list of conversations" in found[0]
    assert found[1].startswith("missing_image")


def test_a_damaged_row_group_spoils_only_its_samples(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data.parquet", group=2)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    assert [bool(one) for one in faults(path)] == [False, False, True, True]


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"nothing of the kind" * 100])
def test_files_of_another_kind_are_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot be read as"):
        read(path)


def test_parquet_without_conversations_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="no column conversations but text"):
        read(tmp_path / "data.parquet")


def test_row_groups_are_cached_and_the_cache_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = read(write_parquet(tmp_path / "data.parquet", group=1))
    table = reader._group(0)
    assert reader._group(0) is table
    monkeypatch.setattr("laco_deploy.training.corpus.readers.parquet.CACHE_BYTES", 1)
    reader._group(1)
    assert list(reader._groups) == [1]


# Shards.


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add_member(tar, name, data)
    return path


def dialogue_of(*texts: str, **more: Any) -> bytes:
    return json.dumps({"conversations": turns(*texts), **more}).encode()


def test_captions_several_images_and_folders_of_a_shard(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "data.tar",
        ("a/1.txt", b" a cat\n"),
        ("a/1.JPG", b"cat"),
        ("b/1.10.png", b"last"),
        ("b/1.2.webp", b"first"),
        ("b/1.json", dialogue_of("<image><image>", "two", image="elsewhere.png")),
    )
    caption, several = (read(path)[i] for i in range(2))
    assert (caption.name, caption.images) == ("a/1", (b"cat",))
    assert (caption.turns[0].question, caption.turns[0].answer) == ("<image>", "a cat")
    assert several.images == (b"first", b"last")


def test_members_of_other_kinds_are_ignored_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as tar:
        add_member(tar, "1.json", dialogue_of("q", "a"))
        # What webdataset itself would unpickle, or run.
        add_member(tar, "1.pyd", b"cos\nsystem\n(S'false'\ntR.")
        add_member(tar, "._1.json", b"{}")
        link = tarfile.TarInfo("2.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    reader = read(path)
    assert (len(reader), reader.ignored) == (1, 3)
    assert reader[0].turns[0].answer == "a"


def test_names_that_leave_the_folder_write_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = shard(
        inside / "data.tar", ("../../evil.json", dialogue_of("q", "a")), ("/abs.txt", b"x")
    )
    reader = read(path)
    assert reader[0].name == "../../evil"
    assert [entry.name for entry in tmp_path.rglob("*")] == ["inside", "data.tar"]


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("x.json", b"{")], "not JSON"),
        ([("x.json", b"[]")], "no object with conversations"),
        ([("x.json", b'"\xff"')], "not UTF-8"),
        ([("x.png", b"")], "neither a json"),
        ([("x.txt", b" ")], "empty_answer"),
        ([("x.json", b"{}"), ("x.png", b"")], "neither a json"),
    ],
)
def test_broken_samples_of_a_shard_are_named(
    tmp_path: Path, members: list[tuple[str, bytes]], fault: str
) -> None:
    good = ("good.json", dialogue_of("q", "a"))
    found = faults(shard(tmp_path / "data.tar", *members, good))
    assert [bool(one) for one in found] == [True, False]
    assert fault in found[0]


def test_a_shard_cut_short_loses_its_end_alone(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "data.tar")
    data = path.read_bytes()
    # Within the picture of the last sample.
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(data[: last.offset_data + 10])
    found = faults(path)
    assert [bool(one) for one in found] == [False, False, False, True]
    assert "cut short" in found[3]


def test_a_damaged_header_is_seen_although_it_looks_like_the_end(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "data.tar")
    with tarfile.open(path) as tar:
        third = tar.getmember("jpeg.json").offset
    data = bytearray(path.read_bytes())
    data[third : third + 100] = b"\xff" * 100
    path.write_bytes(data)
    found = faults(path)
    assert [bool(one) for one in found] == [False, False, True]
    assert "what stands behind is lost" in found[2]


@pytest.mark.parametrize("kind", ["jsonl", "tar"])
def test_a_file_that_changes_under_the_reader_gives_broken_samples(
    kind: str, tmp_path: Path
) -> None:
    path = FORMATS[kind](tmp_path)
    reader = read(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(SampleError):
        reader[0]
    path.unlink()
    with pytest.raises(SampleError, match="cannot be read"):
        reader[0]


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w:gz") as tar:
        add_member(tar, "1.json", dialogue_of("q", "a"))
    with pytest.raises(DataError, match="Give an uncompressed tar file"):
        read(tmp_path / "data.tar")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_to_a_shard_is_never_more_than_broken_samples(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.tar"
    whole = bytearray(write_shard(path, CONTENT[:3]).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    try:
        reader = read(path)
    except DataError:
        return
    for index in range(len(reader)):
        with contextlib.suppress(SampleError):
            assert isinstance(reader[index], Record)


def test_fingerprints_change_with_the_data_and_not_with_its_place(tmp_path: Path) -> None:
    for kind, make in FORMATS.items():
        here, there = tmp_path / kind / "a", tmp_path / kind / "b"
        here.mkdir(parents=True)
        there.mkdir()
        first = read(make(here)).fingerprint
        assert read(make(there)).fingerprint == first
        path = make(here)
        changed = (
            path.read_bytes()
            .replace("Réd".encode(), "Rèd".encode())
            .replace(json.dumps("Réd")[1:-1].encode(), json.dumps("Rèd")[1:-1].encode())
        )
        assert changed != path.read_bytes(), kind
        path.write_bytes(changed)
        assert read(path).fingerprint != first


def test_nothing_is_kept_open(tmp_path: Path) -> None:
    for kind in ("jsonl", "tar"):
        reader = read(FORMATS[kind](tmp_path))
        assert not any(isinstance(value, io.IOBase) for value in vars(reader).values())
