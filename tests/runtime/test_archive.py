"""A bundle survives an archive bit by bit, and an archive can hold nothing else."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laco_runtimes import archive as archive_module
from laco_runtimes.archive import pack_bundle, unpack_bundle
from laco_runtimes.bundle import open_bundle
from laco_runtimes.errors import ArgumentError, BundleError, BundleNotFoundError, DiskFullError
from laco_runtimes.manifest import MANIFEST_NAME

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def archive(bundle: Path, tmp_path: Path) -> Path:
    return pack_bundle(bundle, tmp_path / "engine.tar")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target" / "engine"


def members_of(archive: Path) -> Members:
    with tarfile.open(archive) as tar:
        return [(one, (tar.extractfile(one) or io.BytesIO()).read()) for one in tar]


def write_tar(archive: Path, members: Members, *, form: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(archive, "w", format=form) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Members:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return [(info, data)]


def refused(archive: Path, out: Path) -> str:
    """The message; nothing may be left behind, in the folder or above it."""
    before = sorted(out.parent.parent.rglob("*"))
    with pytest.raises(BundleError) as error:
        unpack_bundle(archive, out)
    assert sorted(out.parent.parent.rglob("*")) == before
    return str(error.value)


def test_a_bundle_comes_out_as_it_went_in(bundle: Path, archive: Path, out: Path) -> None:
    assert unpack_bundle(archive, out).root == out
    names = sorted(path.relative_to(bundle) for path in bundle.rglob("*"))
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == names
    for name in names:
        assert (out / name).is_dir() or (out / name).read_bytes() == (bundle / name).read_bytes()
    assert list(out.parent.iterdir()) == [out]


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, archive: Path, tmp_path: Path) -> None:
    for path in bundle.rglob("*"):
        os.utime(path, (1, 1))
    again = pack_bundle(bundle, tmp_path / "again.tar")
    assert again.read_bytes() == archive.read_bytes()


def test_tar_itself_reads_the_archive_with_the_manifest_first(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        assert tar.getnames()[0] == MANIFEST_NAME
        assert all(one.isreg() and one.mode == 0o644 and one.mtime == 0 for one in tar)


def test_a_file_larger_than_ustar_holds_gets_a_header_that_does(
    bundle: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "MAX_USTAR_SIZE", 10)
    unpack_bundle(pack_bundle(bundle, tmp_path / "gnu.tar"), out)
    large = archive_module._header("decoder.onnx.data", 9 * 2**30)
    assert tarfile.TarInfo.frombuf(large, "ascii", "strict").size == 9 * 2**30


def test_an_old_bundle_is_replaced_and_a_refused_archive_leaves_it(
    bundle: Path, archive: Path, out: Path
) -> None:
    unpack_bundle(archive, out)
    unpack_bundle(archive, out)
    archive.write_bytes(archive.read_bytes()[:3000])
    assert "cut off" in refused(archive, out)
    assert open_bundle(out).root == out


def test_a_folder_that_is_no_bundle_is_left_alone(archive: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ArgumentError, match="not a bundle"):
        unpack_bundle(archive, out)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "config.json").write_text("{}")
    with pytest.raises(BundleError):
        pack_bundle(bundle, tmp_path / "engine.tar")
    assert not (tmp_path / "engine.tar").exists()


def test_an_archive_is_not_written_into_its_bundle_or_over_a_folder(
    bundle: Path, tmp_path: Path
) -> None:
    for place in (bundle / "engine.tar", tmp_path):
        with pytest.raises(ArgumentError, match="Name a file elsewhere"):
            pack_bundle(bundle, place)
    open_bundle(bundle)


def test_no_archive_at_all_is_not_found(tmp_path: Path, out: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        unpack_bundle(tmp_path / "none.tar", out)


def test_a_bundle_larger_than_the_disk_is_refused_before_it_is_written(
    bundle: Path, archive: Path, out: Path
) -> None:
    members = members_of(archive)
    data = json.loads(members[0][1])
    data["files"][0]["size"] = 10**18
    text = json.dumps(data).encode()
    write_tar(archive, [*member(MANIFEST_NAME, text), *members[1:]])
    with pytest.raises(DiskFullError, match="no space left"):
        unpack_bundle(archive, out)
    assert list(out.parent.iterdir()) == []


HOSTILE: dict[str, Callable[[Members], Members]] = {
    "outside": lambda old: [*old, *member("../outside", b"x")],
    "far outside": lambda old: [*old, *member("onnx/../../outside", b"x")],
    "absolute": lambda old: [*old, *member("/tmp/outside", b"x")],
    "symlink": lambda old: [*old, *member("link", kind=tarfile.SYMTYPE, link="/etc/passwd")],
    "hard link": lambda old: [*old, *member("link", kind=tarfile.LNKTYPE, link="config.json")],
    "symlink for a file": lambda old: [
        *(one for one in old if one[0].name != "config.json"),
        *member("config.json", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    ],
    "folder link, then a file in it": lambda old: [
        old[0],
        *member("onnx", kind=tarfile.SYMTYPE, link="/tmp"),
        *old[1:],
    ],
    "device": lambda old: [*old, *member("zero", kind=tarfile.CHRTYPE)],
    "block device": lambda old: [*old, *member("sda", kind=tarfile.BLKTYPE)],
    "fifo": lambda old: [*old, *member("fifo", kind=tarfile.FIFOTYPE)],
    "folder": lambda old: [*old, *member("folder", kind=tarfile.DIRTYPE)],
    "sparse": lambda old: [*old, *member("sparse", kind=tarfile.GNUTYPE_SPARSE)],
    "contiguous": lambda old: [*old, *member("config.json", kind=tarfile.CONTTYPE)],
    "long name": lambda old: [old[0], *member("x", b"y" * 300, kind=tarfile.GNUTYPE_LONGNAME)],
    "pax header": lambda old: [old[0], *member("x", b"18 path=../outside\n", tarfile.XHDTYPE)],
    "global pax header": lambda old: [old[0], *member("x", b"", tarfile.XGLTYPE)],
    "twice": lambda old: [*old, old[-1]],
    "manifest twice": lambda old: [*old, old[0]],
    "signature twice": lambda old: [*old, *member("laco.sig"), *member("laco.sig")],
    "case clash": lambda old: [*old, *member("CONFIG.json")],
    "dot": lambda old: [*old[:-1], *member(f"./{old[-1][0].name}", old[-1][1])],
    "not listed": lambda old: [*old, *member("extra")],
    "lacking": lambda old: old[:-1],
    "other size": lambda old: [*old[:-1], *member(old[-1][0].name, old[-1][1] + b"x")],
    "manifest last": lambda old: [*old[1:], old[0]],
    "no manifest": lambda old: old[1:],
    "nothing": lambda old: [],
    "swapped contents": lambda old: [
        *old[:1],
        *member(old[1][0].name, old[1][1][::-1]),
        *old[2:],
    ],
    "control characters": lambda old: [*old, *member("a\nb", b"x")],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    archive: Path, out: Path, case: str
) -> None:
    write_tar(archive, HOSTILE[case](members_of(archive)))
    assert str(archive) in refused(archive, out) or case == "swapped contents"


def test_names_beyond_ascii_are_refused(archive: Path, out: Path) -> None:
    write_tar(
        archive,
        [*members_of(archive), *member("e\u0301", b"x")],
        form=tarfile.PAX_FORMAT,
    )
    refused(archive, out)


def test_a_size_below_nothing_is_refused(archive: Path, out: Path) -> None:
    data = archive.read_bytes()
    header = bytearray(data[:512])
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\x00" % sum(header)
    archive.write_bytes(bytes(header) + data[512:])
    assert "-512 bytes" in refused(archive, out)


def test_a_bomb_of_a_manifest_is_not_read(
    archive: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "MAX_MANIFEST_BYTES", 100)
    assert "not with a manifest" in refused(archive, out)


def test_something_behind_the_end_or_between_files_is_refused(archive: Path, out: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data + b"\x00" * 511 + b"x")
    assert "does not end" in refused(archive, out)
    size = len(members_of(archive)[0][1])
    padding = 512 + size
    assert size % 512
    archive.write_bytes(data[:padding] + b"x" + data[padding + 1 :])
    assert "between its files" in refused(archive, out)


def test_an_archive_cut_anywhere_is_refused(archive: Path, out: Path) -> None:
    data = archive.read_bytes()
    for length in range(0, len(data) - 1, 499):
        archive.write_bytes(data[:length])
        refused(archive, out)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_archive_is_refused(archive: Path, out: Path, mode: str) -> None:
    members = members_of(archive)
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    refused(archive, out)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 20_000), value=st.integers(0, 255), cut=st.integers(0, 600))
def test_a_damaged_archive_is_refused_or_the_same_bundle(
    archive: Path, out: Path, at: int, value: int, cut: int
) -> None:
    whole = archive.read_bytes()
    at %= len(whole)
    archive.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 + (cut if value % 2 else 0) :])
    try:
        with suppress(BundleError):
            unpack_bundle(archive, out)
            open_bundle(out)
    finally:
        archive.write_bytes(whole)
    assert [path for path in out.parent.iterdir() if path != out] == []
