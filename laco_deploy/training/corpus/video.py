"""Frames of videos, from files (OpenCV) and from folders of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL import Image

from laco_deploy.training.corpus.record import SampleError, natural_key
from laco_runtimes.errors import ImageError
from laco_runtimes.images import load_image
from laco_runtimes.video import chosen_frames, read_file

FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_T = TypeVar("_T")


def read_frames(
    path: Path, *, max_frames: int, fps: float, prepare: Callable[[Image.Image], _T]
) -> list[_T]:
    """Frames of a video file, `fps` of each second, or all of a folder; at most `max_frames`.

    Where there are more, they are spread evenly from the first frame to the last, as LLaVA does
    (LLaVA-NeXT llava/utils.py, `process_video_with_decord`).

    Args:
        path: a file that OpenCV decodes, or a folder of pictures in the natural order of their
            names.
        max_frames: at least 1.
        fps: of a file that does not say its own rate, every frame counts.
        prepare: called with each frame, so that only what is kept of it stays in memory.

    Raises:
        SampleError: nothing there, or no frame that can be decoded.
    """
    try:
        if path.is_dir():
            return _from_folder(path, max_frames, prepare)
        if path.is_file():
            return read_file(path, fps=fps, max_frames=max_frames, prepare=prepare)
    except OSError as error:  # no permission, a name too long for the file system
        raise SampleError("broken_video", f"a video cannot be read: {error.strerror}") from None
    except ImageError as error:
        raise SampleError("broken_video", str(error)) from None
    raise SampleError("missing_video", f"there is no video at '{path}'")


def _from_folder(path: Path, max_frames: int, prepare: Callable[[Image.Image], _T]) -> list[_T]:
    names = [entry for entry in path.iterdir() if entry.suffix.lower() in FRAME_SUFFIXES]
    if not names:
        raise SampleError("broken_video", f"the folder '{path.name}' has no frames")
    frames = sorted(names, key=lambda file: natural_key(file.name))
    return [prepare(load_image(frames[i])) for i in chosen_frames(len(frames), 1, max_frames)]


__all__ = ["FRAME_SUFFIXES", "read_frames"]
