"""The picture that requests bring: the user's, or a synthetic one."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from laco_deploy.benchmark.schema import ImageIdentity
from laco_runtimes.images import load_image

SYNTHETIC_SIZE = (640, 480)
"""Width and height of a small camera frame."""


def read_picture(path: Path | None) -> tuple[bytes, ImageIdentity]:
    """The bytes of an image file and what they are; of a synthetic photograph without a path.

    Raises:
        ImageError: no image at that path, or one that cannot be read.
    """
    if path is None:
        data = _synthetic()
        return data, _identify(data, None)
    load_image(path)  # checks kind and size before the file is read whole
    data = path.read_bytes()
    return data, _identify(data, path.name.encode(errors="replace").decode())


def _identify(data: bytes, name: str | None) -> ImageIdentity:
    width, height = load_image(data).size
    return ImageIdentity(
        name=name,
        width=width,
        height=height,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _synthetic() -> bytes:
    """A JPEG of smooth colours with some noise, which decodes about as slowly as a photograph.

    What it shows does not matter: every image runs through the same operations.
    """
    width, height = SYNTHETIC_SIZE
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    smooth = np.stack([x, y, (1 + np.sin(12 * x * y)) / 2], axis=-1)  # [H, W, 3]
    noise = np.random.default_rng(0).normal(0, 0.03, smooth.shape)
    pixels = (np.clip(smooth + noise, 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


__all__ = ["read_picture"]
