"""Images for the calibration of activations, as the encoder takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from laco_export.job import ExportJob
from laco_export.parity.plan import LARGE_WEIGHTS
from laco_export.precision import Precisions
from laco_runtimes.images import ImageSource, load_image, preprocess

CALIBRATED = ("int8", "fp8")
"""Vision precisions that need calibration images."""

IMAGES = 64
"""Images that are used, of those given."""

LARGE_IMAGES = 8
"""The same for a large model: each takes seconds, and ranges of activations settle early."""


def calibration_images(job: ExportJob) -> tuple[ImageSource, ...]:
    """The images that will be used: evenly picked from those given, or from the parity images.

    Adversarial ones would widen ranges beyond what a camera sees, so they are left out.
    """
    given = job.calibration or tuple(
        sample.image for sample in job.parity_samples if not sample.adversarial
    )
    limit = LARGE_IMAGES if job.size.vision_encoder > LARGE_WEIGHTS else IMAGES
    if len(given) <= limit:
        return given
    return tuple(given[i] for i in np.linspace(0, len(given) - 1, limit).round().astype(int))


def write_calibration(job: ExportJob, precisions: Precisions, path: Path) -> Path | None:
    """Write pixel values, `.npy` [images, 3, S, S]; None where the precision needs none.

    Raises:
        ImageError: an image that cannot be read.
    """
    images = calibration_images(job)
    if precisions.vision not in CALIBRATED or not images:
        return None
    if not path.exists():
        side = job.preprocessing.image_size
        array = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(len(images), 3, side, side)
        )
        for index, image in enumerate(images):
            array[index] = preprocess(load_image(image), job.preprocessing)[0]
        array.flush()
    return path


__all__ = ["CALIBRATED", "calibration_images", "write_calibration"]
