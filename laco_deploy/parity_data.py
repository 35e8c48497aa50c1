"""Images and questions on which an export compares the engine with PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laco_deploy.training.dataset import read_samples
from laco_export.job import ParitySample
from laco_export.parity.plan import ParityPlan
from laco_export.parity.questions import spread
from laco_export.pictures import SIDE, Pixels, black_and_white, flat, noise, stripes, text
from laco_runtimes.errors import ArgumentError

PARITY_FILE = Path("parity") / "samples.json"
"""Where a checkpoint that `laco train` wrote keeps test images of its own."""

PROMPTS = ("Describe the image.", "What is in this picture?", "How many objects are there?")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def parity_samples(
    checkpoint: str | os.PathLike[str],
    data: Path | None = None,
    images: int | None = None,
    plan: ParityPlan | None = None,
) -> list[ParitySample]:
    """The user's own images, else the checkpoint's; rendered patterns where these are too few.

    Args:
        checkpoint: checkpoint folder; need not exist (its absence is reported elsewhere).
        data: JSON file in the format of LLaVA.
        images: how many, by default as many as the plan asks for. Adversarial ones come on top;
            with 0 there are none of these either.
        plan: how much is compared; that of a small model by default.

    Raises:
        DataError: `data` cannot be read.
    """
    plan = plan or ParityPlan()
    images = plan.min_images if images is None else images
    if images == 0:
        return []
    own = Path(checkpoint) / PARITY_FILE
    source = data if data is not None else own
    found = []
    if data is not None or own.is_file():
        found = [
            ParitySample(sample.image.name, sample.image, sample.turns[0].prompt)
            for sample in read_samples(source)
        ][:images]
    edge_cases = adversarial()
    some = spread(len(edge_cases), plan.adversarial)
    return [*found, *patterns(images - len(found)), *(edge_cases[index] for index in some)]


def patterns(count: int) -> list[ParitySample]:
    """Gradients, stripes, discs and noise in colour, different at every scale."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    samples = []
    for index in range(count):
        waves = 1 + index % 18 // 3
        kinds: tuple[NDArray[np.float64], ...] = (
            (x * np.cos(index) + y * np.sin(index)) % 1.0,
            0.5 + 0.5 * np.sin(2 * np.pi * waves * (x if index % 2 else y)),
            (np.hypot(x - rng.random(), y - rng.random()) < 0.1 + 0.03 * (index % 18)).astype(
                float
            ),
            rng.random((SIDE, SIDE)),
        )
        mix = rng.random((len(kinds), 3))
        colour = np.einsum("khw,kc->hwc", np.stack(kinds), mix / mix.sum(axis=0))
        pixels = np.round(255 * colour).astype(np.uint8)
        samples.append(ParitySample(f"pattern {index + 1}", pixels, PROMPTS[index % len(PROMPTS)]))
    return samples


def adversarial() -> list[ParitySample]:
    """Sixteen images that no camera takes: blank, noise, tiny text, extreme shapes."""
    rng = np.random.default_rng(1)
    line = np.arange(SIDE)
    makers: dict[str, Callable[[], Pixels]] = {
        "black": lambda: flat(0),
        "white": lambda: flat(255),
        "grey": lambda: flat(128),
        "red": lambda: flat((255, 0, 0)),
        "noise": lambda: noise(rng),
        "grey noise": lambda: np.repeat(noise(rng)[..., :1], 3, axis=-1),
        "black or white noise": lambda: noise(rng, levels=2),
        "checkerboard of single pixels": lambda: stripes(1, 1),
        "lines of single pixels": lambda: stripes(0, 1),
        "one white pixel": lambda: black_and_white(np.add.outer(line, line) == SIDE),
        "tiny text": lambda: text(8, 3),
        "tiny white text": lambda: np.asarray(255 - text(8, 3), np.uint8),
        "1 x 1": lambda: noise(rng, 1, 1),
        "1 x 1,000": lambda: noise(rng, 1, 1000),
        "1,000 x 1": lambda: noise(rng, 1000, 1),
        "2 x 400": lambda: text(8, 1, height=2, width=400),
    }
    return [
        ParitySample(name, make(), PROMPTS[index % len(PROMPTS)], adversarial=True)
        for index, (name, make) in enumerate(makers.items())
    ]


def calibration_images(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder, by name.

    Raises:
        ArgumentError: no folder, or no image in it.
    """
    if not folder.is_dir():
        raise ArgumentError(f"'{folder}' is no folder. Give one with images to calibrate on.")
    found = tuple(
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES
    )
    if not found:
        raise ArgumentError(
            f"'{folder}' holds no images ({', '.join(IMAGE_SUFFIXES)}). Give another folder."
        )
    return found


__all__ = ["PROMPTS", "adversarial", "calibration_images", "parity_samples", "patterns"]
