"""From whatever a user has to the pixels an encoder expects: one code to train, export and run."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from laco_runtimes.errors import ImageError, ImageFileNotFoundError

ImageSource = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image
"""A path, the bytes of a file, an RGB array [H, W, 3] of uint8, or a PIL image."""

READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are decoded. Few on purpose: every further decoder is attack surface."""

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: 300 MB as RGB."""

MAX_FILE_BYTES = 200_000_000

URL = re.compile(r"(?:[a-z][a-z0-9+.-]*://|data:[a-z]+/)", re.IGNORECASE)

NO_FIXED_RANGE = ("I", "F", "LAB")
"""Pillow's modes of 32-bit and float pixels, and the one it converts without colour profiles."""

Unit = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes one tile: squashed to a square, scaled to 0..1, then normalised."""

    image_size: Annotated[int, Field(ge=1)]
    """S, side of the tile in pixels."""
    mean: tuple[float, float, float]
    """Channel means (R, G, B) on the 0..1 scale."""
    std: tuple[Unit, Unit, Unit]
    """Channel standard deviations (R, G, B) on the 0..1 scale."""
    resample: Literal["bicubic"] = "bicubic"
    """Pillow's antialiased bicubic."""


def load_image(source: ImageSource) -> Image.Image:
    """Decode an image to RGB, upright (EXIF orientation applied), transparency on white.

    Raises:
        ImageFileNotFoundError: no file at that path.
        ImageError: a URL, not an image of a known format, truncated, empty, over `MAX_PIXELS`, of
            pixels without a fixed range (floats, 32-bit), or an array of another shape or type.
    """
    if isinstance(source, Image.Image):
        with _damage("the PIL image"):
            return _to_rgb(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), "the image data")
    if isinstance(source, str | os.PathLike):
        check_no_url(source, "image")
        return _decode(read_image_file(Path(source)), shown_path(source))
    raise ImageError(
        f"an image cannot be read from {type(source).__name__}. "
        "Give a path, bytes, an RGB array [H, W, 3] of uint8, or a PIL image."
    )


def resize_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Squash an RGB image to [size, size, 3]. No crop: nothing at the border is lost.

    Width before height, in two calls: Pillow rounds to bytes between the two, and which of them it
    does first in a single call depends on its version and on the shape of the image.
    """
    for target in ((size, image.height), (size, size)):
        if image.size != target:
            image = image.resize(target, Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def normalise(
    pixels: NDArray[np.uint8], spec: Preprocessing, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """[S, S, 3] of uint8 to [3, S, S] of float32, (value / 255 - mean) / std.

    Args:
        pixels: of one tile.
        spec: of the model.
        out: where to put the result; a new array by default.
    """
    scale = (1.0 / (255.0 * np.asarray(spec.std))).astype(np.float32)
    shift = (np.asarray(spec.mean) / np.asarray(spec.std)).astype(np.float32)
    planes = np.empty((3, *pixels.shape[:2]), np.float32) if out is None else out
    for channel in range(3):  # ten times faster than all three and a transposition
        np.multiply(pixels[..., channel], scale[channel], out=planes[channel])
        planes[channel] -= shift[channel]
    return planes


def preprocess(image: Image.Image, spec: Preprocessing) -> NDArray[np.float32]:
    """One RGB image to one tile of pixel values, [1, 3, S, S] float32."""
    return normalise(resize_square(image, spec.image_size), spec)[None]


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file, not decoded.

    Raises:
        ImageFileNotFoundError: no file at that path.
        ImageError: a file that cannot be read, or over `MAX_FILE_BYTES`.
    """
    check_is_file(path, "image")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{shown_path(path)} is larger than {MAX_FILE_BYTES // 1_000_000} MB. "
                "Scale the image down first."
            )
        return path.read_bytes()
    except OSError as error:  # no permission
        raise _unreadable(path, error, "image") from None


def check_is_file(path: Path, what: str) -> None:
    """Raise if there is no file.

    Args:
        path: where it should be.
        what: "image" or "video".

    Raises:
        ImageFileNotFoundError: no file at that path.
        ImageError: a path that cannot be looked up.
    """
    try:
        is_there = path.is_file()
    except OSError as error:
        raise _unreadable(path, error, what) from None
    if not is_there:
        raise ImageFileNotFoundError(
            f"there is no {what} file at {shown_path(path)}. Check the path."
        )


def check_no_url(source: str | os.PathLike[str], what: str) -> None:
    """Raise if a text is a URL: a runtime opens no connection.

    Args:
        source: path or text.
        what: "image" or "video".

    Raises:
        ImageError: it is one.
    """
    if isinstance(source, str) and URL.match(source):
        raise ImageError(
            f"{shown_path(source)} is a URL and cannot be read: nothing is downloaded or decoded "
            f"from text. Save the {what} first and give its path."
        )


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as it stands in a message: quoted, and not too long."""
    text = repr(os.fspath(path))
    return text if len(text) <= 200 else f"{text[:200]}..."


def _unreadable(path: Path, error: OSError, what: str) -> ImageError:
    return ImageError(
        f"{shown_path(path)} cannot be read: {error.strerror}. Give the path of a {what} file."
    )


def _decode(data: bytes, what: str) -> Image.Image:
    if not data:
        raise ImageError(f"{what} is empty. Give the contents of an image file.")
    with _damage(what), warnings.catch_warnings():
        # Our own limit is stricter than Pillow's warning.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=READ_FORMATS)
        _check_size(*image.size)
        return _to_rgb(image)


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Whatever a decoder makes of foreign bytes, as `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(_too_large(what)) from None
    except UnidentifiedImageError:
        # Pillow's own text holds a memory address, so it is not passed on.
        raise ImageError(
            f"{what} is not an image in a known format. "
            f"Convert it to one of {', '.join(READ_FORMATS)}."
        ) from None
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, ...
        raise ImageError(
            f"{what} is damaged or cut short and cannot be decoded. Save or copy the image again."
        ) from error


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"an image array must be uint8 of shape [H, W, 3] in RGB order, not {array.dtype} of "
            f"{list(array.shape)}. Convert it first."
        )
    _check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image) -> Image.Image:
    _check_size(*image.size)
    if image.mode in NO_FIXED_RANGE:
        raise ImageError(
            f"an image with pixels of mode {image.mode!r} has no fixed range from black to white. "
            "Convert it to 8-bit RGB first."
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _from_grey16(image).convert("RGB")
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _from_grey16(image: Image.Image) -> Image.Image:
    """16-bit greys to 8 bits. Pillow's own conversion clips them at 255."""
    grey = np.asarray(image).astype(np.uint16)
    shown = (grey >> 8).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        shown[grey == key] = 255
    return Image.fromarray(shown)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"an image of {width}x{height} pixels is empty. Give a real image.")
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large(f"an image of {width}x{height} pixels"))


def _too_large(what: str) -> str:
    return (
        f"{what} is over the limit of {MAX_PIXELS // 1_000_000} megapixels. "
        "Scale the image down first."
    )


__all__ = [
    "ImageSource",
    "Preprocessing",
    "check_is_file",
    "check_no_url",
    "load_image",
    "normalise",
    "preprocess",
    "read_image_file",
    "resize_square",
    "shown_path",
]
