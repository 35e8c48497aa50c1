"""A hidden folder beside a bundle's place, to make the bundle in; what kills leave is cleared away.

`.engine.1f0c3a9e/` holds the folder `bundle`, which becomes `engine`, and `owner.lock`. The process
that makes the bundle holds a lock (flock) on that file. The system drops it however the process
ends, so a folder whose lock can be had belongs to nobody: the next one that writes to the same
place removes it. A process id would not do: ids come back, and mean nothing from container to
container.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from laco_runtimes.errors import DiskFullError

LOCK_NAME = "owner.lock"
BUNDLE_NAME = "bundle"

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
STILL_STARTING_S = 60
"""An empty folder that is younger may belong to a process that is about to lock it."""
NO_ROOM_BYTES = 1_000_000
"""Free space below which any failure is put down to the disk: not all libraries say why."""


@contextmanager
def work_folder(final: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """An empty folder on the file system of `final`, gone at the end unless it was moved away.

    Args:
        final: where the bundle will stand, a resolved path; its parents are made.
        needed_bytes: what is going to be written, where that is known.

    Raises:
        DiskFullError: less than `needed_bytes` are free, or the disk filled up on the way.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(final)
    check_room(final, needed_bytes)
    holder = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    try:
        with _full_disk_named(final, holder):
            holder.mkdir()
            lock = _take_lock(holder)
            try:
                folder = holder / BUNDLE_NAME
                folder.mkdir()
                yield folder
            finally:
                if lock is not None:
                    os.close(lock)
    finally:
        _remove(holder)


def check_room(final: Path, needed_bytes: int) -> None:
    """Refuse to start what cannot end well.

    Raises:
        DiskFullError: less than `needed_bytes` are free where `final` will stand.
    """
    free = shutil.disk_usage(final.parent).free
    if free < needed_bytes:
        raise DiskFullError(
            f"no space left for '{final}': it takes {_mb(needed_bytes)} and {_mb(free)} are free. "
            f"Free {_mb(needed_bytes - free)}, or name a folder on another disk."
        )


def clear_leftovers(final: Path) -> None:
    """Remove the work folders that killed processes left beside `final`, and nothing else."""
    pattern = re.compile(rf"\.{re.escape(final.name)}\.[0-9a-f]{{8}}")
    for holder in final.parent.iterdir():
        lock_file = holder / LOCK_NAME
        if not pattern.fullmatch(holder.name) or holder.is_symlink():
            continue
        if not lock_file.is_file():
            _remove_if_never_used(holder)
            continue
        lock = _try_lock(lock_file)
        if lock is None:  # somebody is at work in it, or there is no telling
            continue
        try:
            _remove(holder)
        finally:
            os.close(lock)


def _remove(holder: Path) -> None:
    """The lock file last: a kill on the way must leave what the next one knows as a leftover."""
    with suppress(OSError):
        for path in holder.iterdir():
            if path.name != LOCK_NAME:
                shutil.rmtree(path, ignore_errors=True)
        (holder / LOCK_NAME).unlink(missing_ok=True)
    shutil.rmtree(holder, ignore_errors=True)


def _remove_if_never_used(holder: Path) -> None:
    """A kill between making a folder and locking it leaves an empty one."""
    with suppress(OSError):
        if time.time() - holder.stat().st_mtime > STILL_STARTING_S:
            (holder / f".{LOCK_NAME}").unlink(missing_ok=True)
            holder.rmdir()  # only if it is empty


def _take_lock(holder: Path) -> int | None:
    """Lock a new folder. Its lock file gets its name when it is locked: never seen without."""
    unnamed = holder / f".{LOCK_NAME}"
    unnamed.touch()
    lock = _try_lock(unnamed)
    unnamed.rename(holder / LOCK_NAME)
    return lock


def _try_lock(path: Path) -> int | None:
    """A handle with the lock on a file, or None where it is taken or cannot be had here."""
    if sys.platform == "win32":  # it has no flock: leftovers stay there
        return None
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def _full_disk_named(final: Path, holder: Path) -> Iterator[None]:
    """Turn what a full disk causes into one error that says so."""
    try:
        yield
    except Exception as error:
        try:
            free = shutil.disk_usage(final.parent).free
            written = sum(path.stat().st_size for path in holder.rglob("*") if path.is_file())
        except OSError:  # the folder itself is gone
            raise error from None
        if free >= NO_ROOM_BYTES and not _is_full(error):
            raise
        raise DiskFullError(
            f"no space left for '{final}': {_mb(written)} were written and {_mb(free)} are free. "
            f"Free at least {_mb(max(written, NO_ROOM_BYTES))} more, or name a folder on another "
            "disk."
        ) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


__all__ = ["check_room", "clear_leftovers", "work_folder"]
