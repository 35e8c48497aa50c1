"""Which images activations are calibrated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from laco_deploy.parity_data import adversarial, patterns
from laco_export.calibration import (
    IMAGES,
    LARGE_IMAGES,
    calibration_images,
    check_calibration,
    write_calibration,
)
from laco_export.exporter import export_bundle
from laco_export.job import ExportJob, Modules
from laco_export.parity.plan import LARGE_WEIGHTS
from laco_export.pictures import extremes
from laco_export.precision import Precisions
from laco_export.targets import TARGETS
from laco_runtimes.errors import ArgumentError

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


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_a_precision_that_is_calibrated_needs_images(job: ExportJob, target: str) -> None:
    row = TARGETS[target]
    none = replace(job, parity_samples=())
    assert calibration_images(none) == ()
    for precision in row.precisions.vision:
        asked = Precisions(precision, row.precisions.llm[0])
        check_calibration(with_samples(job, 1), row, asked)
        if precision in row.calibrated:
            with pytest.raises(ArgumentError, match=rf"'{precision}'.*--calibration.*int8w"):
                check_calibration(none, row, asked)
        else:
            check_calibration(none, row, asked)
    assert bool(row.calibrated) == (target != "onnxruntime")  # which finds scales as it goes


@pytest.mark.parametrize("precision", ["int8", "fast"])
def test_it_is_missed_before_any_work(job: ExportJob, precision: str, tmp_path: Path) -> None:
    def load() -> Modules:
        raise AssertionError("the model was loaded")

    none = replace(job, target="openvino", precision=precision, parity_samples=(), load=load)
    with pytest.raises(ArgumentError, match="--calibration"):
        export_bundle(none, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_pixels_are_written_as_the_encoder_takes_them(job: ExportJob, tmp_path: Path) -> None:
    path, some = tmp_path / "calibration.npy", with_samples(job, 2)
    assert write_calibration(some, path) == path
    side = job.preprocessing.image_size
    assert np.load(path).shape == (2 + EXTREMES, 3, side, side)
