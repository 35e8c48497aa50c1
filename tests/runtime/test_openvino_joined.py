"""Dense layers of one input as one: fewer layers, the same numbers, and nothing else touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ov = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from laco_runtimes.engines import openvino_joined  # noqa: E402
from laco_runtimes.engines.openvino import openvino_core  # noqa: E402
from laco_runtimes.engines.openvino_joined import join_layers  # noqa: E402

WIDTH = 64
ROWS = (48, 16, 16)
GROUP = 16


def stored(kind: str, shape: list[int], random: np.random.Generator) -> Any:
    """A constant of random bytes, whatever its type."""
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(shape))
    flat = tensor.data.reshape(-1).view(np.uint8)
    flat[...] = random.integers(0, 256, flat.size)
    return ov.op.Constant(tensor, shared_memory=True)


def weight(kind: str, rows: int, random: np.random.Generator) -> Any:
    """[rows, WIDTH] as NNCF writes it."""
    if kind == "f32":
        return ops.constant(random.normal(size=(rows, WIDTH)).astype(np.float32))
    if kind == "one scale":
        whole = ops.convert(stored("i8", [rows, WIDTH], random), "f16")
        return ops.convert(ops.multiply(whole, ops.constant(np.float16(0.01))), "f32")
    grouped = kind in ("i4", "u4")
    shape = [rows, WIDTH // GROUP, GROUP] if grouped else [rows, WIDTH]
    values = ops.convert(stored(kind, shape, random), "f16")
    if kind in ("u4", "u8"):
        values = ops.subtract(values, ops.convert(stored(kind, [*shape[:-1], 1], random), "f16"))
    scales = random.uniform(1e-3, 1e-2, [*shape[:-1], 1]).astype(np.float16)
    values = ops.multiply(values, ops.constant(scales))
    if grouped:
        values = ops.reshape(values, ops.constant(np.array([rows, WIDTH])), special_zero=False)
    return ops.convert(values, "f32")


def layers(kinds: list[str], *, bias: list[bool]) -> Any:
    """A model of dense layers side by side on one input [B, T, WIDTH]."""
    random = np.random.default_rng(0)
    source = ops.parameter([-1, -1, WIDTH], ov.Type.f32, name="x")
    ends = []
    for rows, kind, with_bias in zip(ROWS, kinds, bias, strict=True):
        end = ops.matmul(source, weight(kind, rows, random), False, True)
        if with_bias:
            end = ops.add(end, ops.constant(random.normal(size=rows).astype(np.float32)))
        ends.append(ops.relu(end))
    return ov.Model(ends, [source])


def products(model: Any) -> int:
    return sum(node.get_type_name() == "MatMul" for node in model.get_ordered_ops())


def outputs(model: Any) -> list[NDArray[np.float32]]:
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = np.random.default_rng(1).normal(size=(1, 5, WIDTH)).astype(np.float32)
    return [np.array(value) for value in compiled(x).values()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["i8", "u8", "i4", "u4"])
def test_joined_layers_give_the_same_numbers(kind: str, bias: bool) -> None:
    apart, joined = (layers([kind] * 3, bias=[bias] * 3) for _ in range(2))
    assert join_layers(joined) == 2
    assert products(joined) == 1
    for one, two in zip(outputs(apart), outputs(joined), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize(
    ("kinds", "bias"),
    [
        pytest.param(["f32"] * 3, [True] * 3, id="floats"),
        pytest.param(["i8", "i4", "i8"], [True] * 3, id="stored differently"),
        pytest.param(["one scale"] * 3, [True] * 3, id="a scale for the whole layer"),
        pytest.param(["i8"] * 3, [True, False, True], id="one without a bias"),
    ],
)
def test_what_does_not_fit_together_stays(kinds: list[str], bias: list[bool]) -> None:
    apart, model = (layers(kinds, bias=bias) for _ in range(2))
    assert join_layers(model) == 0
    assert products(model) == 3
    for one, two in zip(outputs(apart), outputs(model), strict=True):
        np.testing.assert_array_equal(one, two)


def test_layers_of_different_inputs_stay() -> None:
    random = np.random.default_rng(0)
    sources = [ops.parameter([-1, -1, WIDTH], ov.Type.f32, name=name) for name in "ab"]
    ends = [ops.matmul(source, weight("i8", 16, random), False, True) for source in sources]
    assert join_layers(ov.Model(ends, sources)) == 0


@pytest.mark.parametrize(("less", "joined"), [(0, 2), (1, 0)])
def test_weights_too_large_to_hold_twice_stay(
    less: int, joined: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_joined, "LARGEST", sum(ROWS) * WIDTH // 2 - less)
    assert join_layers(layers(["i4"] * 3, bias=[True] * 3)) == joined
