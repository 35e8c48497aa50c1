"""A bundle folder: verified before anything in it is loaded, sealed last, replaced in one step."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from laco_runtimes.errors import ArgumentError, BundleError, BundleNotFoundError
from laco_runtimes.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    BundleFacts,
    Manifest,
    Variant,
)

MAX_MANIFEST_BYTES = 16_000_000


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: every file is the one that was sealed."""

    root: Path
    manifest: Manifest

    @property
    def tokenizer(self) -> Path:
        """Path of `tokenizer.json`."""
        return self.root / TOKENIZER_NAME

    def variant(self, name: str) -> Variant:
        """One vision encoder of the bundle by name.

        Raises:
            ArgumentError: the bundle has no variant of that name.
        """
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.manifest.variants)
        raise ArgumentError(
            f"the bundle has no variant {name!r}. It holds: {known}; "
            "baselines are added with `laco export --baseline`."
        )


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read the manifest and check every file against it: kind, size and SHA-256.

    Raises:
        BundleNotFoundError: nothing at `path`, or no manifest in it.
        BundleError: a manifest that is damaged or of another format version; a file that is
            missing, extra, changed, a link, or no regular file.
    """
    root = Path(path).resolve()
    manifest = _read_manifest(root)
    found = dict(_walk(root))
    found.pop(MANIFEST_NAME)
    listed = {entry.path: entry for entry in manifest.files}
    if missing := sorted(listed.keys() - found.keys()):
        raise BundleError(f"'{root}' has lost its file {missing[0]!r}. Copy or export it again.")
    if extra := sorted(found.keys() - listed.keys()):
        raise BundleError(
            f"'{root}' holds {extra[0]!r}, which its manifest does not list. Remove that file."
        )
    for name, entry in listed.items():
        if found[name].stat().st_size != entry.size or _sha256(found[name]) != entry.sha256:
            raise BundleError(
                f"file {name!r} of '{root}' is not the one that was exported. "
                "Copy or export the bundle again."
            )
    return Bundle(root, manifest)


def seal_bundle(folder: Path, facts: BundleFacts) -> Manifest:
    """List and hash every file of a finished folder, then write `laco.json`, last and in one step.

    All files are on the disk (fsync) when this returns, so a later rename cannot outrun them.

    Raises:
        BundleError: a link or special file in the folder, a file name outside `RelativePath`, or
            a graph that the facts name and the folder lacks.
    """
    entries = []
    for name, path in sorted(_walk(folder)):
        if name == MANIFEST_NAME:
            raise BundleError(f"'{folder}' is sealed already. Export into an empty folder.")
        with path.open("rb+") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        entries.append({"path": name, "size": path.stat().st_size, "sha256": _sha256(path)})
    manifest = _validated({**facts.model_dump(), "files": entries}, folder)
    write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2).encode() + b"\n")
    for parent in {path.parent for _, path in _walk(folder)}:
        _sync_folder(parent)
    return manifest


def replace_folder(finished: Path, final: Path) -> None:
    """Move a finished folder to `final`, in one step, and remove the bundle that stood there.

    Both must be on one file system; make `finished` beside `final`. A kill at any moment leaves the
    old bundle or the new one at `final`, perhaps with the other beside it. (Where the system cannot
    exchange two folders, as on Windows, there is an instant with none.)

    Raises:
        ArgumentError: `final` holds something that is not a bundle; it is left alone.
    """
    check_replaceable(final)
    final = final.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    if not final.exists():
        finished.rename(final)
        _sync_folder(final.parent)
        return
    if _exchange(finished, final):
        old = finished
    else:
        old = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
        final.rename(old)
        try:
            finished.rename(final)
        except OSError:
            old.rename(final)
            raise
    _sync_folder(final.parent)
    shutil.rmtree(old)


def check_replaceable(final: Path) -> None:
    """Refuse to replace anything but an empty folder or an older bundle.

    Raises:
        ArgumentError: `final` is a file, or a folder with other contents.
    """
    if not final.exists() or (final / MANIFEST_NAME).is_file():
        return
    if not final.is_dir() or any(final.iterdir()):
        raise ArgumentError(
            f"'{final}' exists and is not a bundle, so it is not replaced. "
            "Remove it or name another folder."
        )


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST_NAME
    if not os.path.lexists(path):
        what = "holds no bundle (no laco.json)" if root.exists() else "does not exist"
        raise BundleNotFoundError(
            f"'{root}' {what}. Make one with: laco export --ckpt ckpt/ --out '{root}'"
        )
    if _regular_size(path, MANIFEST_NAME) > MAX_MANIFEST_BYTES:
        raise BundleError(f"'{path}' is too large for a manifest. Export the model again.")
    try:
        data = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"'{path}' is damaged: {error}. Copy or export the bundle again."
        ) from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"'{root}' was made by a newer version of laco-deploy: its format is {version}, and "
            f"this version reads {FORMAT_VERSION}. Upgrade laco-deploy, or export the model again."
        )
    return _validated(data, root)


def _validated(data: object, root: Path) -> Manifest:
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"key {key!r}: " if key else ""
        raise BundleError(
            f"the manifest of '{root}' is not valid: {where}{first['msg']}. Export the model again."
        ) from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every file below `root`; all but folders and plain files is an error."""
    folders = [root]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            name = path.relative_to(root).as_posix()
            if stat.S_ISDIR(path.lstat().st_mode):
                folders.append(path)
            else:
                _regular_size(path, name)
                yield name, path


def _regular_size(path: Path, name: str) -> int:
    """Size of a file with one name; through a second one, its contents could change unseen."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(
            f"{name!r} in '{path.parent}' is a link or no file. Copy the bundle whole."
        )
    if status.st_nlink != 1:
        raise BundleError(
            f"{name!r} in '{path.parent}' is hard-linked from elsewhere. Copy the bundle whole."
        )
    return status.st_size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    if os.name != "posix":
        return False
    library = ctypes.CDLL(None)
    names = (os.fsencode(one), os.fsencode(other))
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
        failed = library.renameat2(at_cwd, names[0], at_cwd, names[1], exchange)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, 2)  # RENAME_SWAP of sys/stdio.h
    else:
        return False
    return not failed


__all__ = [
    "Bundle",
    "check_replaceable",
    "open_bundle",
    "replace_folder",
    "seal_bundle",
    "write_atomic",
]
