"""Arrays in files that are larger than what should be held in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


def disk_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new `.npy` of zeros that is filled through memory, with room for all of it.

    Its blocks are taken now: where a page is written for which the disk has none left, the system
    ends the process (SIGBUS), and nothing could be said or cleared away.

    Raises:
        OSError: there is no room.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


__all__ = ["disk_array"]
