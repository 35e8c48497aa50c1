"""Ranges of what enters layers, from one look at the images in the fp32 graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxscript import ir

from laco_deploy.model.checkpoint import Checkpoint
from laco_export.calibration import also_asked, write_calibration
from laco_export.job import ExportJob
from laco_export.parity import questions
from laco_export.qdq import products
from laco_export.ranges import measure_ranges, read_ranges
from laco_runtimes.errors import ExportError

RANDOM = np.random.default_rng(2)


@pytest.fixture
def images(encoder: Path) -> NDArray[np.float32]:
    """Five, one of them with a value far out in one channel."""
    [pixels] = ir.load(encoder).graph.inputs
    assert pixels.shape is not None
    drawn = RANDOM.normal(size=(5, *pixels.shape[1:])).astype(np.float32)
    drawn[3, 1, 2, 2] = 30.0
    return drawn


def run(model: ir.Model, encoder: Path, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    probe = ir.save(model, encoder.with_name("probe.onnx")) or encoder.with_name("probe.onnx")
    session = onnxruntime.InferenceSession(probe, providers=["CPUExecutionProvider"])
    try:
        return list(session.run(None, {"pixel_values": images}))
    finally:
        probe.unlink()


def test_every_channel_has_its_outermost_values_of_all_images(
    encoder: Path, images: NDArray[np.float32], tmp_path: Path
) -> None:
    model, told = ir.load(encoder), []
    sources = list(dict.fromkeys(one.source for one in products(model.graph)))
    features = measure_ranges(encoder, images, tmp_path / "r.npz", lambda: told.append(1))
    assert len(told) == len(images)
    ranges = read_ranges(tmp_path / "r.npz")
    assert list(ranges) == [one.name for one in sources]
    model.graph.outputs.extend(one for one in sources if one not in model.graph.outputs)
    expected, *values = run(model, encoder, images)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    for source, value in zip(sources, values, strict=True):
        rows = value.reshape(-1, value.shape[-1])
        found = ranges[str(source.name)]
        np.testing.assert_allclose(found.low, rows.min(0), atol=1e-5)
        np.testing.assert_allclose(found.high, rows.max(0), atol=1e-5)


def test_the_graph_stays_as_it_is_and_nothing_stands_beside_it(
    encoder: Path, images: NDArray[np.float32], tmp_path: Path
) -> None:
    before = {one.name: one.read_bytes() for one in encoder.parent.iterdir()}
    measure_ranges(encoder, images[:1], tmp_path / "r.npz", lambda: None)
    assert {one.name: one.read_bytes() for one in encoder.parent.iterdir()} == before


def test_images_that_cause_no_numbers_are_refused(
    encoder: Path, images: NDArray[np.float32], tmp_path: Path
) -> None:
    images[2] = np.inf
    with pytest.raises(ExportError, match=r"no numbers.*int8w"):
        measure_ranges(encoder, images, tmp_path / "r.npz", lambda: None)
    assert not (tmp_path / "r.npz").exists()


def test_images_that_are_also_asked_about_are_known_by_their_pixels(
    checkpoint: Checkpoint, job: ExportJob, tmp_path: Path
) -> None:
    some = replace(job, calibration=tuple(one.image for one in job.parity_samples[2:4]))
    pixels = np.load(write_calibration(some, tmp_path / "images.npy"))
    asked = questions.prepare(some, checkpoint.root, tmp_path / "squares")
    found = also_asked(asked, pixels)
    assert {2: 0, 3: 1}.items() <= found.items()
    for index, place in found.items():
        np.testing.assert_array_equal(asked.pixel_values(index)[0], pixels[place])
    for index in set(range(len(asked.questions))) - set(found):
        assert not (asked.pixel_values(index)[0] == pixels).all(axis=(1, 2, 3)).any()
