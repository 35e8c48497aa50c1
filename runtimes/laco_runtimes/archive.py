"""A bundle as one file, and back: plain tar, the manifest first, read member by member.

Only what that manifest lists is taken out of an archive, by the names and sizes it gives, so there
is nothing in an archive that could name a place of its own.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from laco_runtimes.bundle import (
    MAX_MANIFEST_BYTES,
    Bundle,
    open_bundle,
    parse_manifest,
)
from laco_runtimes.errors import ArgumentError, BundleError, BundleNotFoundError
from laco_runtimes.manifest import MANIFEST_NAME
from laco_runtimes.replace import check_replaceable, replace_folder
from laco_runtimes.signing import MAX_SIGNATURE_BYTES, SIGNATURE_NAME
from laco_runtimes.workfolder import work_folder

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
MAX_USTAR_SIZE = 8**11 - 1
"""Largest file, in bytes, whose size the header of ustar holds; GNU's holds any."""


def pack_bundle(path: str | os.PathLike[str], archive: str | os.PathLike[str]) -> Path:
    """Verify a bundle and write it as a tar file; the same bundle gives the same bytes.

    Args:
        path: the bundle folder.
        archive: the file to write; an older file there is replaced when the new one is complete.

    Raises:
        LacoError: all that `open_bundle` raises.
        ArgumentError: `archive` is a folder or inside the bundle, or a name is too long for tar.
        DiskFullError: no room for the archive; an older one stays.
    """
    bundle = open_bundle(path)
    final = Path(archive).resolve()
    if final.is_dir() or final.is_relative_to(bundle.root):
        raise ArgumentError(f"'{final}' is a folder or in the bundle. Name a file elsewhere.")
    names = [MANIFEST_NAME, *(entry.path for entry in bundle.manifest.files)]
    if bundle.signature != "none":
        names.append(SIGNATURE_NAME)
    sizes = [(bundle.root / name).stat().st_size for name in names]
    with work_folder(final, needed_bytes=sum(sizes) + 2 * BLOCK * len(sizes)) as folder:
        made = folder / final.name
        with made.open("xb") as file:
            for name, size in zip(names, sizes, strict=True):
                file.write(_header(name, size))
                with (bundle.root / name).open("rb") as source:
                    shutil.copyfileobj(source, file, CHUNK)
                file.write(bytes(-size % BLOCK))
            file.write(bytes(2 * BLOCK))
            file.flush()
            os.fsync(file.fileno())
        made.replace(final)
    return final


def unpack_bundle(archive: str | os.PathLike[str], out: str | os.PathLike[str]) -> Bundle:
    """Take a bundle out of a tar file that `pack_bundle` wrote, verify it, and put it at `out`.

    Args:
        archive: the file.
        out: folder of the bundle; an older bundle there is replaced.

    Raises:
        BundleNotFoundError: no file at `archive`.
        BundleError: an archive that is damaged, cut off, or holds anything but the files that its
            manifest lists, each once and of its size; all else that `open_bundle` raises.
        ArgumentError: `out` exists and is not a bundle.
        DiskFullError: no room for the bundle.
    """
    path, final = Path(archive), Path(out).resolve()
    if not path.is_file():
        raise BundleNotFoundError(f"there is no archive '{path}'. Make one with: laco pack")
    check_replaceable(final)
    with path.open("rb") as file, _readable(path):
        name, size = _next_member(file)
        if name != MANIFEST_NAME or size > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"archive '{path}' begins with {name!r} of {size} bytes, and not with a manifest. "
                "Make it with: laco pack"
            )
        text = _exactly(file, size)
        _skip_padding(file, size)
        manifest = parse_manifest(text, path)
        left = {entry.path: entry.size for entry in manifest.files}
        with work_folder(final, needed_bytes=sum(left.values())) as folder:
            (folder / MANIFEST_NAME).write_bytes(text)
            _unpack_files(file, path, folder, left)
            for made in sorted(folder.rglob("*")):
                _sync(made)
            _sync(folder)
            open_bundle(folder)
            replace_folder(folder, final)
    return open_bundle(final)


def _unpack_files(file: BinaryIO, path: Path, folder: Path, left: dict[str, int]) -> None:
    signed = False
    for name, size in _members(file):
        if name == SIGNATURE_NAME and not signed and size <= MAX_SIGNATURE_BYTES:
            signed = True
        elif left.pop(name, None) != size:
            raise BundleError(
                f"archive '{path}' holds {name!r} of {size} bytes, which its manifest does not "
                "list so, or holds it twice. Make the archive again with: laco pack"
            )
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            _copy(file, out, size)
        _skip_padding(file, size)
    if left:
        raise BundleError(
            f"archive '{path}' lacks {min(left)!r}. Copy the archive again, or make it again with: "
            "laco pack"
        )


def _members(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Name and size of every further member, up to an end of nothing but zeros."""
    while any(block := _exactly(file, BLOCK)):
        yield _checked(block)
    rest = file.read(2 * tarfile.RECORDSIZE)  # tar fills its last record
    if len(rest) < BLOCK or len(rest) >= 2 * tarfile.RECORDSIZE or any(rest):
        raise _DamagedError("does not end as a tar file does")


def _next_member(file: BinaryIO) -> tuple[str, int]:
    return _checked(_exactly(file, BLOCK))


def _checked(block: bytes) -> tuple[str, int]:
    """Name and size of a member that is a plain file.

    Raises:
        BundleError: a header that is damaged, or of a link, a folder, a device, a sparse file, or
            of an extension that would change what follows.
    """
    try:
        member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise _DamagedError(f"holds a damaged header ({error})") from None
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.linkname:
        raise _DamagedError(f"holds {member.name!r}, which is no plain file")
    if member.size < 0:
        raise _DamagedError(f"holds {member.name!r} of {member.size} bytes")
    return member.name, member.size


class _DamagedError(Exception):
    """What is wrong with an archive."""


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _DamagedError as error:
        raise BundleError(
            f"archive '{path}' {error}. Copy the archive again, or make it again with: laco pack"
        ) from None


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)  # owner 0, time 0
    member.size, member.mode = size, 0o644
    kind: Any = tarfile.USTAR_FORMAT if size <= MAX_USTAR_SIZE else tarfile.GNU_FORMAT
    try:
        header = member.tobuf(kind, "ascii", "strict")
    except ValueError as error:
        raise ArgumentError(
            f"{name!r} cannot be packed: {error}. Give it a shorter name."
        ) from None
    if len(header) != BLOCK:
        raise ArgumentError(f"{name!r} is too long a name for tar. Give it a shorter one.")
    return header


def _copy(source: BinaryIO, target: IO[bytes], size: int) -> None:
    while size:
        chunk = _exactly(source, min(size, CHUNK))
        target.write(chunk)
        size -= len(chunk)


def _skip_padding(file: BinaryIO, size: int) -> None:
    if any(_exactly(file, -size % BLOCK)):
        raise _DamagedError("holds something between its files")


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _DamagedError("is cut off")
    return data


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = ["pack_bundle", "unpack_bundle"]
