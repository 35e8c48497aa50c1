"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from pathlib import Path

from laco_runtimes.errors import ArgumentError
from laco_runtimes.manifest import MANIFEST_NAME


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
        sync_folder(final.parent)
        return
    if _exchange(finished, final):
        old = finished
    else:
        old = finished.with_name(f".{final.name}.{secrets.token_hex(4)}")
        final.rename(old)
        try:
            finished.rename(final)
        except OSError:
            old.rename(final)
            raise
    sync_folder(final.parent)
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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
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


__all__ = ["check_replaceable", "replace_folder", "sync_folder", "write_atomic"]
