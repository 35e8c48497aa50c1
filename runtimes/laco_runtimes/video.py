"""Frames of videos: which are taken, and how OpenCV reads them from a file.

OpenCV is imported where a file is read; the extra `video` of laco-deploy brings it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laco_runtimes.errors import ArgumentError, ImageError, MissingPackageError
from laco_runtimes.images import (
    MAX_PIXELS,
    ImageSource,
    check_is_file,
    check_no_url,
    load_image,
    shown_path,
)

DEFAULT_FRAMES = 8

MAX_FRAMES = 512
"""More are refused: no context holds them, and their pixels would fill the memory."""

VideoSource = str | os.PathLike[str] | Sequence[ImageSource] | NDArray[np.uint8]
"""A path, the frames as a list of images, or as an array [frames, H, W, 3] of uint8."""

_T = TypeVar("_T")


Marks = tuple[tuple[int, bytes], ...]
"""Bytes of a file and where they stand."""

# Few on purpose: FFmpeg also takes playlists and scripts, which name other files for it to open.
CONTAINERS: tuple[tuple[str, Marks], ...] = (
    ("MP4", ((4, b"ftyp"),)),
    ("MOV", ((4, b"moov"),)),
    ("MOV", ((4, b"mdat"),)),
    ("MOV", ((4, b"wide"),)),
    ("Matroska", ((0, b"\x1a\x45\xdf\xa3"),)),  # and WebM
    ("AVI", ((0, b"RIFF"), (8, b"AVI "))),
    ("MPEG", ((0, b"\x00\x00\x01\xba"),)),
    ("MPEG-TS", ((0, b"\x47"), (188, b"\x47"))),
    ("FLV", ((0, b"FLV\x01"),)),
    ("Ogg", ((0, b"OggS"),)),
    ("WMV", ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),)),
    ("GIF", ((0, b"GIF8"),)),
)
"""File formats that are handed to the decoder."""

HEAD_BYTES = 189
"""As far as `CONTAINERS` look."""


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """A video in place of an image, seen as some of its frames.

    Args:
        source: path of a file that OpenCV decodes; or frames that are there already, as a list of
            images or as an array [frames, H, W, 3] of uint8 in RGB order.
        fps: frames taken of each second; for files only.
        frames: frames taken at most, spread evenly from the first to the last. Without `fps` and
            `frames`, 8 of a file and all of those that are there already.

    Raises:
        ArgumentError: both `fps` and `frames`, one of them out of range, `fps` without a file, or
            another kind of source.
    """

    source: VideoSource
    fps: float | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | os.PathLike | list | tuple | np.ndarray):
            raise ArgumentError(
                f"a video cannot be read from {type(self.source).__name__}. Give the path of a "
                "file, a list of images, or an array [frames, H, W, 3] of uint8."
            )
        if self.fps is not None and self.frames is not None:
            raise ArgumentError("a video has both fps and frames. Give one of them.")
        if self.fps is not None:
            if isinstance(self.fps, bool) or not isinstance(self.fps, int | float):
                raise ArgumentError(
                    "fps must be a number. Give the frames of a second, as 1 or 0.5."
                )
            if not (math.isfinite(self.fps) and self.fps > 0):
                raise ArgumentError(f"fps is {self.fps}. Give a number above 0.")
            if not self.is_file:
                raise ArgumentError(
                    "fps is given for frames that are there already. Give frames, or leave it out."
                )
        if self.frames is not None:
            if isinstance(self.frames, bool) or not isinstance(self.frames, int):
                raise ArgumentError("frames must be a whole number. Give at least 1.")
            if not 1 <= self.frames <= MAX_FRAMES:
                raise ArgumentError(f"frames is {self.frames}. Give 1 to {MAX_FRAMES}.")

    @property
    def is_file(self) -> bool:
        """Whether it is read by OpenCV."""
        return isinstance(self.source, str | os.PathLike)

    def read(self, prepare: Callable[[Image.Image], _T]) -> list[_T]:
        """The frames that are taken, in order.

        Args:
            prepare: called with each RGB frame, so that only what is kept of it stays in memory.

        Raises:
            ImageFileNotFoundError: no file at that path.
            ImageError: not a video, no frame in it, a frame that cannot be decoded, or more frames
                than `MAX_FRAMES`.
            MissingPackageError: OpenCV is not installed.
        """
        if isinstance(self.source, str | os.PathLike):
            check_no_url(self.source, "video")
            most = self.frames
            if self.fps is None and most is None:
                most = DEFAULT_FRAMES
            return read_file(Path(self.source), fps=self.fps, max_frames=most, prepare=prepare)
        images: Any = self.source
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise ImageError(
                f"a video array must be uint8 of shape [frames, H, W, 3], not {images.dtype} of "
                f"{list(images.shape)}. Convert it first."
            )
        if not len(images):
            raise ImageError("a video has no frames. Give at least one.")
        chosen = chosen_frames(len(images), 1, self.frames)
        _check_number(len(chosen))
        return [prepare(load_image(images[number])) for number in chosen]


def chosen_frames(count: int, step: int, max_frames: int | None) -> list[int]:
    """Numbers of the frames taken of `count`: every `step`-th, or evenly `max_frames`.

    As LLaVA does (LLaVA-NeXT llava/utils.py, `process_video_with_decord`).
    """
    every = range(0, count, step)
    if max_frames is None or len(every) <= max_frames:
        return list(every)
    return [int(number) for number in np.linspace(0, count - 1, max_frames)]


def read_file(
    path: Path,
    *,
    fps: float | None,
    max_frames: int | None,
    prepare: Callable[[Image.Image], _T],
) -> list[_T]:
    """Frames of a video file: `fps` of each second, at most `max_frames`.

    Args:
        path: of a file in one of `CONTAINERS`.
        fps: None takes every frame, and so does a file that does not say its own rate.
        max_frames: where there are more, they are spread evenly from the first frame to the last.
            None takes all, and refuses more than `MAX_FRAMES`.
        prepare: called with each RGB frame.

    Raises:
        ImageFileNotFoundError: no file at that path.
        ImageError: not a video, or without a frame that can be decoded.
        MissingPackageError: OpenCV is not installed.
    """
    check_is_file(path, "video")
    _check_container(path)
    try:
        import cv2
    except ImportError:
        raise MissingPackageError("cv2", "video") from None

    name = shown_path(path)
    video = _open(path)
    try:
        if not video.isOpened():
            raise ImageError(f"{name} cannot be decoded as a video. Convert it to MP4 (H.264).")
        if video.get(cv2.CAP_PROP_FRAME_WIDTH) * video.get(cv2.CAP_PROP_FRAME_HEIGHT) > MAX_PIXELS:
            raise ImageError(f"the frames of {name} are too large. Scale the video down first.")
        rate = video.get(cv2.CAP_PROP_FPS)
        step = max(round(rate / fps), 1) if fps and 0 < rate < float("inf") else 1
        chosen = chosen_frames(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), step, max_frames)
        if max_frames is None:
            _check_number(len(chosen))
        found = [prepare(frame) for frame in _decode(video, chosen)]
        # Containers state their length, and not always rightly.
        if not chosen or len(found) < len(chosen):
            video.release()
            chosen = chosen_frames(_count(path), step, max_frames)
            if max_frames is None:
                _check_number(len(chosen))
            video = _open(path)
            found = [prepare(frame) for frame in _decode(video, chosen)]
    except cv2.error as error:
        raise ImageError(f"{name} cannot be decoded: {error}. Convert it to MP4 (H.264).") from None
    finally:
        video.release()
    if not found:
        raise ImageError(f"{name} has no frames that can be decoded. Check the file.")
    return found


def _check_container(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ImageError(
            f"{shown_path(path)} cannot be read: {error.strerror}. Give the path of a video file."
        ) from None
    if not any(
        all(head[start:].startswith(mark) for start, mark in marks) for _, marks in CONTAINERS
    ):
        known = ", ".join(dict.fromkeys(name for name, _ in CONTAINERS))
        raise ImageError(
            f"{shown_path(path)} is not a video in a known format. Convert it to one of {known}."
        )


def _check_number(frames: int) -> None:
    if frames > MAX_FRAMES:
        raise ImageError(
            f"{frames} frames would be taken of a video, and {MAX_FRAMES} are the most. "
            "Give a smaller fps, or frames."
        )


def _open(path: Path) -> Any:
    import cv2

    # FFmpeg alone: other back ends take a name for a pattern or a pipeline. Absolute, for FFmpeg
    # takes what stands before a colon for a protocol. One thread: several videos may be decoded at
    # the same time.
    return cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def _count(path: Path) -> int:
    video = _open(path)
    count = 0
    while video.grab():
        count += 1
    video.release()
    return count


def _decode(video: Any, chosen: list[int]) -> Iterator[Image.Image]:
    """Read forward: seeking lands on key frames only in some containers."""
    wanted = set(chosen)
    for number in range(max(wanted, default=-1) + 1):
        if not video.grab():
            return
        if number in wanted:
            is_read, frame = video.retrieve()
            if is_read:
                yield Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))


__all__ = [
    "DEFAULT_FRAMES",
    "MAX_FRAMES",
    "Video",
    "VideoSource",
    "chosen_frames",
    "read_file",
]
