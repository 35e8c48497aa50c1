"""Ink and paper: colour pairs with good contrast, and backgrounds."""

import colorsys

import numpy as np
from PIL import Image

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (216, 28, 36),
    "orange": (247, 133, 20),
    "yellow": (242, 210, 0),
    "green": (28, 155, 62),
    "blue": (36, 92, 222),
    "purple": (135, 48, 185),
    "pink": (255, 150, 200),
}
"""The colours with a name, clearly different from each other on `neutral_paper`."""

MIN_CONTRAST = 4.5
"""Contrast ratio of WCAG 2.1, success criterion 1.4.3 (body text)."""


def luminance(color: RGB) -> float:
    """Relative luminance of an sRGB colour, 0 (black) to 1 (white), as WCAG 2.1 defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: RGB, second: RGB) -> float:
    """WCAG 2.1 contrast ratio of two colours, 1 (none) to 21 (black on white)."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def _color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> RGB:
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    red, green, blue = (round(255 * channel) for channel in rgb)
    return red, green, blue


def ink_and_paper(rng: np.random.Generator) -> tuple[RGB, RGB]:
    """Ink and paper with a contrast of at least `MIN_CONTRAST`.

    Dark on light, one in ten the other way round; a quarter of the pairs are clearly coloured.
    """
    strength = 0.85 if rng.random() < 0.25 else 0.08
    while True:
        dark = _color(rng, (0.0, strength), (0.03, 0.45))
        light = _color(rng, (0.0, 0.3 * strength), (0.85, 1.0))
        if contrast(dark, light) >= MIN_CONTRAST:
            break
    return (dark, light) if rng.random() < 0.9 else (light, dark)


def neutral_paper(rng: np.random.Generator) -> RGB:
    """A greyish background, very light or very dark, on which every named colour stands out."""
    return _color(rng, (0.0, 0.06), (0.93, 1.0) if rng.random() < 0.9 else (0.04, 0.18))


def plain(size: int, color: RGB) -> Image.Image:
    """A one-coloured RGB image of size x size pixels."""
    return Image.new("RGB", (size, size), color)


def mottled(rng: np.random.Generator, size: int, color: RGB, amplitude: int = 10) -> Image.Image:
    """Mild, soft noise around a colour: at most `amplitude` grey levels up or down."""
    grid = 12
    offsets = rng.integers(-amplitude, amplitude + 1, (grid, grid, 1))
    coarse = np.clip(np.array(color) + offsets, 0, 255).astype(np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def background(rng: np.random.Generator, size: int, color: RGB) -> Image.Image:
    """A background of size x size pixels: two thirds plain, one third mottled."""
    return mottled(rng, size, color) if rng.random() < 1 / 3 else plain(size, color)
