"""Video files whose frames tell their number by their brightness."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np


def write_video(path: Path, frames: Iterable[int | tuple[int, int, int]], fps: float) -> None:
    """Write frames of one colour (RGB, or a grey) as Motion JPEG."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 48))
    assert writer.isOpened()
    for colour in frames:
        rgb = (colour,) * 3 if isinstance(colour, int) else colour
        writer.write(np.full((48, 64, 3), rgb[::-1], np.uint8))
    writer.release()
