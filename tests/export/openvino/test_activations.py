"""Dense layers in 8 bits: what is rounded, and in which range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from laco_export.targets.openvino_activations import LARGEST, int8_activations
from laco_runtimes.engines.openvino import import_openvino, openvino_core
from laco_runtimes.errors import ExportError
from tests.export.openvino.work import Source, request_for, write_ranges

if TYPE_CHECKING:
    from openvino import Model, Node

WIDTH = 16
GENERATOR = np.random.default_rng(3)
IMAGES = GENERATOR.normal(size=(5, 1, 4, WIDTH)).astype(np.float32)
IMAGES[1, 0, 2, 3] = 40.0  # in one channel of one image


def weight() -> np.ndarray:
    return GENERATOR.normal(size=(WIDTH, WIDTH)).astype(np.float32)


def encoder() -> Model:
    """A layer that reads pixels, two that read what it makes, and one that sees no negatives."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, 1, 4, WIDTH], openvino.Type.f32)
    hidden = ops.matmul(pixels, np.eye(WIDTH, dtype=np.float32), False, True)
    hidden = ops.subtract(ops.reshape(hidden, np.array([-1, 4, WIDTH]), False), np.float32(0.1))
    one, two = (ops.matmul(hidden, weight(), False, turned) for turned in (True, False))
    last = ops.matmul(ops.relu(ops.add(one, two)), weight(), False, True)
    return openvino.Model([last], [pixels])


@pytest.fixture
def rounded(tiny: Source, tmp_path: Path) -> Callable[[Model], Model]:
    """By the ranges of what enters its layers."""
    request = request_for(tiny, tmp_path, "vision_encoder", "int8")

    def turn(model: Model) -> Model:
        ranges = write_ranges(model, IMAGES, tmp_path / "ranges.npz")
        return int8_activations(model, replace(request, calibration=ranges))

    return turn


def nodes(model: Model, kind: str) -> list[Node]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def outputs(model: Model) -> np.ndarray:
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    return np.array(openvino_core().compile_model(model, "CPU", hints)(IMAGES)[0])


def test_answers_stay(rounded: Callable[[Model], Model]) -> None:
    model = encoder()
    expected = outputs(model)
    found = outputs(rounded(model))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    apart = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert apart > 0.999


def test_layers_with_one_input_share_its_rounding_and_weights_are_of_7_bits(
    rounded: Callable[[Model], Model],
) -> None:
    model = rounded(encoder())
    pixels, *layers = nodes(model, "MatMul")
    assert pixels.input_value(0).get_node().get_type_name() != "FakeQuantize"
    first, second, last = (layer.input_value(0).get_node() for layer in layers)
    assert first == second != last
    assert len(nodes(model, "FakeQuantize")) == 2
    for layer in layers:
        assert layer.get_attributes()["transpose_b"]
        codes = layer.input_value(1).get_node().input_value(0).get_node().input_value(0).get_node()
        assert codes.get_element_type().get_type_name() == "i8"
        # The largest weight of every output has the largest code.
        assert (np.abs(codes.data.astype(int)).max(axis=1) == LARGEST).all()


def test_ranges_hold_the_outermost_values_of_any_image_and_zero_as_a_step(
    rounded: Callable[[Model], Model],
) -> None:
    model = rounded(encoder())
    first, second = nodes(model, "FakeQuantize")
    low, high = ends(first)
    probe = import_openvino().Model([first.input_value(0)], model.get_parameters())
    values = outputs(probe)
    assert low <= values.min() + 1e-6
    assert high >= values.max() - 1e-6
    # No more than a step of it is unused, on one side or the other.
    assert min(values.min() - low, high - values.max()) < (high - low) / 255
    low, high = ends(second)  # behind what has no negatives
    assert low == 0 < high


def ends(rounding: Node) -> tuple[float, float]:
    """Of its range, which has 256 steps and zero on one of them."""
    low, high, *again = (float(rounding.input_value(port).get_node().data) for port in range(1, 5))
    step = (high - low) / 255
    assert again == [low, high]
    assert rounding.get_attributes()["levels"] == 256
    assert abs(low / step - round(low / step)) < 1e-3
    return low, high


def test_a_layer_that_the_fp32_graph_does_not_know_is_refused(tiny: Source, tmp_path: Path) -> None:
    ranges = write_ranges(encoder(), IMAGES, tmp_path / "ranges.npz")
    request = request_for(tiny, tmp_path, "vision_encoder", "int8")
    with pytest.raises(ExportError, match=r"range is not known.*int8w"):
        int8_activations(encoder(), replace(request, calibration=ranges))
