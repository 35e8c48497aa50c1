"""Frames of videos, from files (OpenCV) and from folders of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from laco_deploy.training.corpus.record import SampleError, natural_key
from laco_runtimes.errors import ImageError
from laco_runtimes.images import MAX_PIXELS, load_image

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
            return _from_file(path, max_frames, fps, prepare)
    except OSError as error:  # no permission, a name too long for the file system
        raise SampleError("broken_video", f"a video cannot be read: {error.strerror}") from None
    except ImageError as error:
        raise SampleError("broken_video", f"a frame cannot be read: {error}") from None
    raise SampleError("missing_video", f"there is no video at '{path}'")


def chosen_frames(count: int, step: int, max_frames: int) -> list[int]:
    """Numbers of the frames that are taken of `count`: every `step`-th, or evenly `max_frames`."""
    every = range(0, count, step)
    if len(every) <= max_frames:
        return list(every)
    return [int(number) for number in np.linspace(0, count - 1, max_frames)]


def _from_folder(path: Path, max_frames: int, prepare: Callable[[Image.Image], _T]) -> list[_T]:
    names = [entry for entry in path.iterdir() if entry.suffix.lower() in FRAME_SUFFIXES]
    if not names:
        raise SampleError("broken_video", f"the folder '{path.name}' has no frames")
    frames = sorted(names, key=lambda file: natural_key(file.name))
    return [prepare(load_image(frames[i])) for i in chosen_frames(len(frames), 1, max_frames)]


def _from_file(
    path: Path, max_frames: int, fps: float, prepare: Callable[[Image.Image], _T]
) -> list[_T]:
    import cv2

    video = _open(path)
    try:
        if not video.isOpened():
            raise SampleError("broken_video", f"'{path.name}' cannot be decoded as a video")
        size = video.get(cv2.CAP_PROP_FRAME_WIDTH) * video.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if size > MAX_PIXELS:
            raise SampleError("broken_video", f"the frames of '{path.name}' are too large")
        rate = video.get(cv2.CAP_PROP_FPS)
        step = max(round(rate / fps), 1) if 0 < rate < float("inf") else 1
        chosen = chosen_frames(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), step, max_frames)
        found = _grab(video, chosen, prepare)
        # Containers state their length, and not always rightly.
        if not chosen or len(found) < len(chosen):
            video.release()
            video = _open(path)
            found = _grab(video, chosen_frames(_count(path), step, max_frames), prepare)
    except cv2.error as error:
        raise SampleError("broken_video", f"'{path.name}' cannot be decoded: {error}") from None
    finally:
        video.release()
    if not found:
        raise SampleError("broken_video", f"'{path.name}' has no frames")
    return found


def _open(path: Path) -> Any:
    import cv2

    # FFmpeg alone: other back ends take a name for a pattern or a pipeline. One thread, for each
    # worker decodes a video of its own.
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def _count(path: Path) -> int:
    video = _open(path)
    count = 0
    while video.grab():
        count += 1
    video.release()
    return count


def _grab(video: Any, chosen: list[int], prepare: Callable[[Image.Image], _T]) -> list[_T]:
    """Read forward: seeking lands on key frames only in some containers."""
    return [prepare(frame) for frame in _decode(video, chosen)]


def _decode(video: Any, chosen: list[int]) -> Iterator[Image.Image]:
    wanted = set(chosen)
    for number in range(max(wanted, default=-1) + 1):
        if not video.grab():
            return
        if number in wanted:
            is_read, frame = video.retrieve()
            if is_read:
                yield Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))


__all__ = ["FRAME_SUFFIXES", "chosen_frames", "read_frames"]
