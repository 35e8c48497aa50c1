"""Arrays that are filled through memory have their room on the disk from the start."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from laco_export.disk_array import disk_array

SHAPE = (3, 500, 700)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve room")
def test_the_disk_has_room_for_pages_that_were_never_written(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    disk_array(path, np.float32, SHAPE)
    status = path.stat()
    assert status.st_size > 4 * np.prod(SHAPE)
    assert 512 * status.st_blocks >= status.st_size


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    array = disk_array(path, np.int64, SHAPE)
    array[1] = 7
    array.flush()
    read = np.load(path, allow_pickle=False)
    assert read.shape == SHAPE
    assert (read[1] == 7).all()
    assert not read[0].any()
