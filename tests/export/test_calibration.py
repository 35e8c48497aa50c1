"""Which images activations are calibrated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from laco_deploy.parity_data import adversarial, patterns
from laco_export.calibration import IMAGES, LARGE_IMAGES, calibration_images, write_calibration
from laco_export.job import ExportJob
from laco_export.parity.plan import LARGE_WEIGHTS
from laco_export.pictures import extremes
from laco_export.precision import Precisions

EXTREMES = len(extremes())


def with_samples(job: ExportJob, count: int) -> ExportJob:
    return replace(job, parity_samples=(*patterns(count), *adversarial()))


def same(one: object, other: object) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(("given", "used"), [(5, 5), (IMAGES, IMAGES), (3 * IMAGES, IMAGES)])
def test_images_are_picked_evenly_and_extremes_stand_behind_them(
    job: ExportJob, given: int, used: int
) -> None:
    images = calibration_images(with_samples(job, given))
    samples = patterns(given)
    assert len(images) == used + EXTREMES
    assert same(images[0], samples[0].image)
    assert same(images[used - 1], samples[-1].image)
    assert all(same(*pair) for pair in zip(images[used:], extremes(), strict=True))


def test_a_large_encoder_is_calibrated_on_few_and_on_every_extreme(job: ExportJob) -> None:
    large = replace(job, size=replace(job.size, vision_encoder=LARGE_WEIGHTS + 1))
    assert len(calibration_images(with_samples(large, 64))) == LARGE_IMAGES + EXTREMES


def test_what_a_user_gives_is_taken_instead(job: ExportJob) -> None:
    photo = np.full((7, 9, 3), 50, np.uint8)
    images = calibration_images(replace(with_samples(job, 64), calibration=(photo,)))
    assert len(images) == 1 + EXTREMES
    assert same(images[0], photo)


def test_blank_pages_alone_are_both_calibrated_on_and_compared() -> None:
    judges = {np.asarray(one.image).tobytes(): one.name for one in adversarial()}
    common = {judges[one.tobytes()] for one in extremes() if one.tobytes() in judges}
    assert common == {"black", "white"}


def test_without_images_or_need_nothing_is_written(job: ExportJob, tmp_path: Path) -> None:
    path, needed = tmp_path / "calibration.npy", Precisions("int8", "int8")
    none = replace(job, parity_samples=())
    assert calibration_images(none) == ()
    assert write_calibration(none, needed, path) is None
    some = with_samples(job, 2)
    assert write_calibration(some, Precisions("int8w", "int8"), path) is None
    assert not path.exists()
    assert write_calibration(some, needed, path) == path
    side = job.preprocessing.image_size
    assert np.load(path).shape == (2 + EXTREMES, 3, side, side)
