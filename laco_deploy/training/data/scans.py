"""The 1,797 handwritten digits that scikit-learn bundles, split once and for all."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from laco_deploy.training.data.scene import Split
from laco_runtimes.errors import MissingPackageError

SOURCE = (
    "sklearn.datasets.load_digits: test part of UCI 'Optical Recognition of Handwritten Digits' "
    "(E. Alpaydin, C. Kaynak, 1998, doi:10.24432/C50P49), CC BY 4.0"
)
TRAIN_PER_CLASS = 140
VAL_PER_CLASS = 15
SPLIT_SEED = 1797
"""The split never depends on the seed of a data set: a scan that tests one model trains none."""

PIXELS = 8
MARGIN = 2
ZOOM = 8


@dataclass(frozen=True, slots=True)
class Scan:
    """One handwritten digit: coverage of ink as an 8-bit image, and the box its ink fills in it."""

    digit: int
    ink: Image.Image
    box: tuple[int, int, int, int]


def split_indices(labels: np.ndarray) -> dict[Split, np.ndarray]:
    """Indices of the scans of each split: 140 per class train, 15 per class val, the rest test.

    That is 1,400, 150 and 247 scans, shuffled within each class with `SPLIT_SEED`. Scans are
    split, not writers: the file does not say who wrote what.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    parts: dict[Split, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for digit in range(10):
        shuffled = rng.permutation(np.flatnonzero(labels == digit))
        parts["train"].append(shuffled[:TRAIN_PER_CLASS])
        parts["val"].append(shuffled[TRAIN_PER_CLASS : TRAIN_PER_CLASS + VAL_PER_CLASS])
        parts["test"].append(shuffled[TRAIN_PER_CLASS + VAL_PER_CLASS :])
    return {split: np.sort(np.concatenate(chunks)) for split, chunks in parts.items()}


def _enlarge(pixels: np.ndarray, digit: int) -> Scan:
    padded = np.pad(pixels * (255.0 / 16.0), MARGIN).round().astype(np.uint8)
    size = ZOOM * (PIXELS + 2 * MARGIN)
    ink = Image.fromarray(padded).resize((size, size), Image.Resampling.LANCZOS)
    box = ink.point([0] * 96 + [255] * 160).getbbox()
    return Scan(digit, ink, box or (0, 0, size, size))


@lru_cache(maxsize=3)
def load_scans(split: Split) -> tuple[Scan, ...]:
    """All scans of a split, enlarged to 96 x 96 pixels: 8 x 8 and a margin of 2, times 8."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError("scikit-learn", "train") from error
    data = load_digits()
    chosen = split_indices(data.target)[split]
    return tuple(_enlarge(data.images[i], int(data.target[i])) for i in chosen)
