"""Images for the calibration of activations, as the encoder takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from laco_export.disk_array import disk_array
from laco_export.job import ExportJob
from laco_export.parity.plan import LARGE_WEIGHTS
from laco_export.parity.questions import QuestionSet
from laco_export.pictures import extremes
from laco_export.precision import Precisions
from laco_export.protocols import Floats
from laco_export.targets.base import TargetType
from laco_runtimes.errors import ArgumentError
from laco_runtimes.images import ImageSource, load_image, preprocess

IMAGES = 64
"""Images that are used, of those given; `extremes` come on top."""

LARGE_IMAGES = 4
"""The same for a large model: each takes seconds, and ranges of activations settle early."""


def calibration_images(job: ExportJob) -> tuple[ImageSource, ...]:
    """The images that will be used: evenly picked from those given, or from the parity images.

    Behind them come `extremes`, so that ranges also hold what no camera sees. The adversarial
    parity images themselves are left out: they are to judge the result.
    """
    given = job.calibration or tuple(
        sample.image for sample in job.parity_samples if not sample.adversarial
    )
    limit = LARGE_IMAGES if job.size.vision_encoder > LARGE_WEIGHTS else IMAGES
    if not given:
        return ()
    if len(given) > limit:
        given = tuple(given[i] for i in np.linspace(0, len(given) - 1, limit).round().astype(int))
    return (*given, *extremes())


def check_calibration(job: ExportJob, target: TargetType, precisions: Precisions) -> None:
    """Before anything is computed: a precision that is calibrated needs images for it.

    Raises:
        ArgumentError: there are none.
    """
    if precisions.vision in target.calibrated and not calibration_images(job):
        raise ArgumentError(
            f"the vision precision {precisions.vision!r} is calibrated on images, and none are "
            "given, nor any to compare answers on. Name a folder with --calibration, or choose "
            f"another of: {', '.join(target.uncalibrated)}."
        )


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What the images come to."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """What `CompileRequest.calibration` is, by the name of the encoder's variant."""
    known: Mapping[int, Floats] = field(default_factory=dict)
    """By number of the question: the fp32 graph's visual tokens of its image, [1, N', D], where it
    was one of them."""


def write_calibration(job: ExportJob, path: Path) -> Path:
    """Write pixel values, `.npy` [images, 3, S, S].

    Raises:
        ImageError: an image that cannot be read.
    """
    images = calibration_images(job)
    side = job.preprocessing.image_size
    array = disk_array(path, np.float32, (len(images), 3, side, side))
    for index, image in enumerate(images):
        array[index] = preprocess(load_image(image), job.preprocessing)[0]
    array.flush()
    return path


def also_asked(asked: QuestionSet, pixels: Floats) -> dict[int, int]:
    """Questions whose one tile is among calibration images, by number: the place of that.

    Args:
        asked: all questions.
        pixels: as `write_calibration` has written them, [images, 3, S, S].
    """
    places = {_digest(image): place for place, image in enumerate(pixels)}
    found = {}
    for index, question in enumerate(asked.questions):
        if question.tiles == 1:
            digest = _digest(asked.pixel_values(index)[0])
            if digest in places:
                found[index] = places[digest]
    return found


def _digest(image: Floats) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


__all__ = [
    "Calibrated",
    "also_asked",
    "calibration_images",
    "check_calibration",
    "write_calibration",
]
