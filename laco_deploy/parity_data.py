"""Images and questions on which an export compares the engine with PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laco_deploy.training.dataset import read_samples
from laco_export.job import ParitySample

PARITY_FILE = Path("parity") / "samples.json"
"""Where a checkpoint that `laco train` wrote keeps test images of its own."""

_SIDE = 96
_PROMPTS = ("Describe the image.", "What is in this picture?", "How many objects are there?")


def parity_samples(
    checkpoint: str | os.PathLike[str], data: Path | None = None
) -> list[ParitySample]:
    """The user's own images, else the checkpoint's, else rendered patterns.

    Args:
        checkpoint: checkpoint folder; need not exist (its absence is reported elsewhere).
        data: JSON file in the format of LLaVA.

    Raises:
        DataError: `data` cannot be read.
    """
    own = Path(checkpoint) / PARITY_FILE
    source = data if data is not None else own
    if data is None and not own.is_file():
        return _patterns()
    return [
        ParitySample(sample.image.name, sample.image, sample.turns[0].prompt)
        for sample in read_samples(source)
    ]


def _patterns() -> list[ParitySample]:
    """Gradients, stripes, discs and noise in colour: 18 images that differ at every scale."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / _SIDE
    samples = []
    for index in range(18):
        waves = 1 + index // 3
        kinds: tuple[NDArray[np.float64], ...] = (
            (x * np.cos(index) + y * np.sin(index)) % 1.0,
            0.5 + 0.5 * np.sin(2 * np.pi * waves * (x if index % 2 else y)),
            (np.hypot(x - rng.random(), y - rng.random()) < 0.1 + 0.03 * index).astype(float),
            rng.random((_SIDE, _SIDE)),
        )
        mix = rng.random((len(kinds), 3))
        colour = np.einsum("khw,kc->hwc", np.stack(kinds), mix / mix.sum(axis=0))
        pixels = np.round(255 * colour).astype(np.uint8)
        samples.append(
            ParitySample(f"pattern {index + 1}", pixels, _PROMPTS[index % len(_PROMPTS)])
        )
    return samples


__all__ = ["parity_samples"]
