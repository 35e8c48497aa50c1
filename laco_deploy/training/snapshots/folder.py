"""Folders that are whole or not there: write a snapshot, find the newest whole one.

A snapshot is `step-00000120/`. It is written as `.step-00000120.partial`, every file flushed to the
disk; `complete.json`, written last, names each file with its size and SHA-256; then the folder is
renamed. A process or machine that dies at any moment leaves the earlier snapshots as they were.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from laco_runtimes.errors import CheckpointError

COMPLETE = "complete.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_HIDDEN = re.compile(r"\.step-\d{8,}\.(partial|old)")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole snapshot: every file in it is as it was written."""

    path: Path
    step: int

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote.

        Raises:
            CheckpointError: no such file, or not JSON.
        """
        return read_json(self.path / name)

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """What `write_tensors` wrote, on the CPU.

        Raises:
            CheckpointError: no such file, or not safetensors.
        """
        try:
            return load_file(self.path / name)
        except Exception as error:  # safetensors raises kinds of its own
            raise CheckpointError(
                f"'{self.path / name}' cannot be read ({error}). Remove the snapshot and resume."
            ) from error


def snapshot_name(step: int) -> str:
    """`step-00000120`."""
    return f"step-{step:08d}"


def snapshots(root: Path) -> list[Snapshot]:
    """What is in `root` by its names, oldest first; not looked into."""
    if not root.is_dir():
        return []
    found = [(match, path) for path in root.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((Snapshot(path, int(match[1])) for match, path in found), key=lambda s: s.step)


def newest_snapshot(root: Path, report: Callable[[str], None] | None = None) -> Snapshot | None:
    """The newest snapshot that is whole; what a crash left half-written is swept away.

    A snapshot with a missing or changed file is set aside as `step-...damaged` and the one before
    is taken.

    Args:
        root: the folder of the snapshots; need not exist.
        report: called with a sentence for each snapshot that had to be set aside.

    Raises:
        CheckpointError: there are snapshots and none of them is whole.
    """
    _sweep(root)
    damaged: list[tuple[Snapshot, str]] = []
    for snapshot in reversed(snapshots(root)):
        if (fault := find_fault(snapshot.path)) is not None:
            damaged.append((snapshot, fault))
            continue
        for broken, reason in damaged:
            aside = broken.path.with_name(broken.path.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            broken.path.rename(aside)
            if report is not None:
                report(
                    f"snapshot '{broken.path}' is damaged ({reason}); it is set aside as "
                    f"'{aside.name}' and step {snapshot.step} is used."
                )
        return snapshot
    if damaged:
        snapshot, fault = damaged[0]
        raise CheckpointError(
            f"none of the {len(damaged)} snapshots in '{root}' is whole (step {snapshot.step}: "
            f"{fault}). Copy them again, or remove the folder to start over."
        )
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with a snapshot folder, or None where every byte is as it was written."""
    try:
        seal = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        if seal["format"] != _FORMAT:
            return f"format {seal['format']}, not {_FORMAT}"
        files = {
            str(name): (entry["bytes"], entry["sha256"]) for name, entry in seal["files"].items()
        }
    except FileNotFoundError:
        return f"no {COMPLETE}"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{COMPLETE} cannot be read"
    for name, (size, digest) in files.items():
        file = path / name
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if not inside or not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if _sha256(file) != digest:
            return f"{name} has changed"
    return None


@contextmanager
def claimed(root: Path) -> Iterator[None]:
    """Keep other processes from training into `root` for as long as this one lives.

    The lock goes with the process, however it dies, and its data workers do not hold it.

    Raises:
        CheckpointError: another process has claimed it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise CheckpointError(
                        f"another process trains into '{root.parent}'. "
                        "Wait for it, stop it, or train into another folder."
                    ) from error
                # Some network file systems have no locks; go on without.
        yield


def unfinished(root: Path, step: int) -> Path:
    """The hidden folder in which the snapshot of `step` is written."""
    return root / f".{snapshot_name(step)}.partial"


def begin(partial: Path) -> None:
    """Make the folder that `unfinished` names; what a crash left there goes."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()


def finish(partial: Path, *, keep: int | None = None) -> Path:
    """Seal what was written since `begin` and give it its name.

    Args:
        partial: its files are on the disk already.
        keep: how many of the newest snapshots stay; None keeps all.
    """
    files = {
        file.relative_to(partial).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
        }
        for file in _files(partial)
    }
    write_json(partial / COMPLETE, {"format": _FORMAT, "files": files})
    _sync(partial)
    root = partial.parent
    path = _publish(partial)
    if keep is not None:
        for old in snapshots(root)[:-keep]:
            _retire(old.path)
    return path


def write_json(path: Path, values: Any) -> None:
    """Write JSON and flush it to the disk; floats come back to the bit.

    Raises:
        CheckpointError: JSON does not know a type in `values`, or the disk is full.
    """
    try:
        text = json.dumps(values, indent=1) + "\n"
    except TypeError as error:
        raise CheckpointError(
            f"{path.name} of a snapshot cannot be written as JSON ({error}). "
            "Use an optimizer and schedule whose state is numbers and tensors."
        ) from error
    with _writing(path), path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        CheckpointError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read ({error}). Remove the snapshot and resume."
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors and flush them to the disk.

    Raises:
        CheckpointError: the disk is full.
    """
    with _writing(path):
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes files only the owner may read
        _sync(path)


def sync_files(path: Path) -> None:
    """Flush to the disk what other libraries wrote into a folder."""
    for file in _files(path):
        _sync(file)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"'{path}' cannot be written ({error}). "
            "Make room and resume: the snapshots before it are whole."
        ) from error


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _publish(partial: Path) -> Path:
    """Rename a sealed folder; from its seal on a crash in here loses nothing (see `_sweep`)."""
    path = partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))
    if path.exists():
        _retire(path)
    partial.rename(path)
    _sync(path.parent)
    return path


def _retire(path: Path) -> None:
    """Take the name away first: a folder that is half deleted must not look like a snapshot."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(root: Path) -> None:
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        match = _HIDDEN.fullmatch(path.name)
        if match is None:
            continue
        if match[1] == "partial" and find_fault(path) is None:
            _publish(path)  # sealed, and the crash came before it got its name
        else:
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows flushes files only
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "Snapshot",
    "begin",
    "claimed",
    "find_fault",
    "finish",
    "newest_snapshot",
    "read_json",
    "snapshot_name",
    "snapshots",
    "sync_files",
    "unfinished",
    "write_json",
    "write_tensors",
]
