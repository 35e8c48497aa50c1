"""What users give as images and videos, brought into the order of the marks in their prompts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_utils import load_image as download_image

from laco_runtimes.errors import ArgumentError, ImageError
from laco_runtimes.images import load_image

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
"""What stands for an image or a video in a text."""


@dataclass(frozen=True, slots=True)
class VisualInput:
    """An image, or the frames of a video, at its place in a prompt."""

    source: Any
    is_video: bool
    is_alone: bool
    """An image with no other image or video in its prompt."""


def read_image(source: Any) -> Image.Image:
    """Decode an image to RGB as a runtime does, see `laco_runtimes.images.load_image`.

    Args:
        source: also a URL, base64 data (`data:image/...`), a tensor, or channels first.

    Raises:
        ImageError: not an image that can be read.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = download_image(source)
    elif isinstance(source, str) and source.startswith("data:image/"):
        try:
            source = base64.b64decode(source.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ImageError("the image data is not base64. Encode the image again.") from error
    elif hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray) and source.ndim == 3:
        height_first = source.shape[2] == 3 or source.shape[0] != 3
        source = source if height_first else source.transpose(1, 2, 0)
    return load_image(source)


def deal(marks: Sequence[Sequence[str]], images: Any, videos: Any) -> list[VisualInput]:
    """Images and videos in the order of their marks.

    Args:
        marks: of each prompt, `IMAGE_MARK` or `VIDEO_MARK`.
        images: one, a list in the order of the marks, or one list per prompt.
        videos: the same; each a list of frames or an array [frames, H, W, 3].

    Raises:
        ArgumentError: not as many as there are marks.
    """
    dealt_images = _deal("image", images, _is_image, [list(m).count(IMAGE_MARK) for m in marks])
    dealt_videos = _deal("video", videos, _is_video, [list(m).count(VIDEO_MARK) for m in marks])
    visuals = []
    for prompt, own_images, own_videos in zip(marks, dealt_images, dealt_videos, strict=True):
        for mark in prompt:
            is_video = mark == VIDEO_MARK
            source = next(own_videos if is_video else own_images)
            visuals.append(VisualInput(source, is_video, len(prompt) == 1 and not is_video))
    return visuals


def deal_without_text(images: Any = None, videos: Any = None) -> list[VisualInput]:
    """Images, then videos, in the order given; those in a list of their own are of one prompt.

    Raises:
        ArgumentError: there are none.
    """
    groups, _ = _arrange("image", images, _is_image)
    visuals = deal([[IMAGE_MARK] * len(group) for group in groups], images, None)
    groups, _ = _arrange("video", videos, _is_video)
    visuals += deal([[VIDEO_MARK] * len(group) for group in groups], None, videos)
    if not visuals:
        raise ArgumentError("there is neither text nor an image. Give at least one.")
    return visuals


def _is_image(given: Any) -> bool:
    return not isinstance(given, list | tuple) and getattr(given, "ndim", 3) != 4


def _is_video(given: Any) -> bool:
    if isinstance(given, list | tuple):
        return bool(given) and _is_image(given[0])
    return getattr(given, "ndim", 0) == 4


def _arrange(what: str, given: Any, is_one: Callable[[Any], bool]) -> tuple[list[list[Any]], bool]:
    """Groups of images or videos, and whether they are those of prompts; else each is of one."""
    if given is None:
        return [], False
    if is_one(given):
        return [[given]], False
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ArgumentError(
            f"a {what} is given as {type(given).__name__}. "
            "Give a video as a list of its frames, or as an array [frames, height, width, 3]."
        )
    items = list(given)
    if all(is_one(item) for item in items):
        return [[item] for item in items], False
    return [[item] if is_one(item) else list(item) for item in items], True


def _deal(what: str, given: Any, is_one: Callable[[Any], bool], counts: list[int]) -> list[Any]:
    """For each prompt an iterator over its images or videos."""
    groups, by_prompt = _arrange(what, given, is_one)
    found = [len(group) for group in groups]
    if (found != counts) if by_prompt else (sum(found) != sum(counts)):
        told = f"{found} {what}s by prompt" if by_prompt else f"{sum(found)} {what}s"
        marked = counts if by_prompt else sum(counts)
        raise ArgumentError(
            f"the text has {marked} <{what}> marks, but {told} are given. "
            f"Write <{what}> once for each, or use apply_chat_template."
        )
    rest = iter([one for group in groups for one in group])
    return [iter(list(islice(rest, count))) for count in counts]


__all__ = ["IMAGE_MARK", "VIDEO_MARK", "VisualInput", "deal", "deal_without_text", "read_image"]
