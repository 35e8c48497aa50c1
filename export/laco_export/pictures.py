"""Small rendered pictures that lie at the edges of what an encoder may be shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

SIDE = 96
"""Of a square picture, in pixels."""

WORDS = "the quick brown fox jumps over the lazy dog 0123456789 "


def flat(colour: int | tuple[int, int, int]) -> Pixels:
    """One colour, [SIDE, SIDE, 3]."""
    return np.broadcast_to(np.array(colour, np.uint8), (SIDE, SIDE, 3)).copy()


def black_and_white(mask: NDArray[np.bool_]) -> Pixels:
    """White where the mask is, [H, W, 3]."""
    return np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


def stripes(across: int, down: int) -> Pixels:
    """Stripes of single pixels: (0, 1) upright, (1, 0) level, (1, 1) a checkerboard."""
    line = np.arange(SIDE)
    return black_and_white(np.add.outer(across * line, down * line) % 2 > 0)


def noise(
    rng: np.random.Generator, height: int = SIDE, width: int = SIDE, levels: int = 256
) -> Pixels:
    """Every value on its own, evenly from `levels` between black and white, [H, W, 3]."""
    drawn = rng.integers(0, levels, (height, width, 3))
    return (drawn * (255 // (levels - 1))).astype(np.uint8)


def text(size: int, shrink: int, *, height: int = 4 * SIDE, width: int = 4 * SIDE) -> Pixels:
    """Black letters of `size` pixels on white, shrunk: about one pixel a stroke, or less.

    Args:
        size: of the font, in pixels.
        shrink: by how much the page is made smaller afterwards.
        height: of the page before, in pixels.
        width: the same.
    """
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for top in range(0, height, size + 2):
        draw.text((top % 7, top), 2 * WORDS, fill="black", font=ImageFont.load_default(size))
    small = (max(1, width // shrink), max(1, height // shrink))
    return np.asarray(page.resize(small, Image.Resampling.BOX))


def extremes() -> tuple[Pixels, ...]:
    """Pictures that reach as far as any picture does: added to every calibration.

    A range that only photographs were seen in is cut off where a page, a blank wall or a screen
    with fine lines comes in; a few of these in the calibration set make it hold.
    """
    rng = np.random.default_rng(2)
    drawn = (stripes(0, 1), stripes(1, 0), stripes(1, 1), text(10, 3))
    return (
        *(flat(0), flat(255), noise(rng), noise(rng, levels=2)),
        *(drawn[1], drawn[3]),
        *(np.asarray(255 - one, np.uint8) for one in (drawn[0], drawn[2], drawn[3])),
    )


__all__ = ["SIDE", "Pixels", "black_and_white", "extremes", "flat", "noise", "stripes", "text"]
