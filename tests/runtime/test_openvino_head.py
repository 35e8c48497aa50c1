"""A decoder's last layer as a convolution: nearly the same logits, and nothing else touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ov = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from laco_runtimes.engines import openvino_head  # noqa: E402
from laco_runtimes.engines.openvino import openvino_core  # noqa: E402
from laco_runtimes.engines.openvino_head import LARGEST, by_position, convolve_head  # noqa: E402
from laco_runtimes.engines.openvino_pointwise import gemm_is_slow  # noqa: E402

WIDTH, VOCABULARY = 48, 200


@pytest.fixture(autouse=True)
def without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_head, "gemm_is_slow", lambda core: True)


def rows(random: np.random.Generator) -> NDArray[np.int8]:
    """All that 8 bits hold, and rows whose sums of products are as large as they can be."""
    stored = random.integers(-128, 128, (VOCABULARY, WIDTH)).astype(np.int8)
    stored[0], stored[1] = 127, -128
    return stored


def decoder(kind: str = "f16", *, scale: tuple[int, ...] = (VOCABULARY, 1)) -> Any:
    """Weights as NNCF stores them; [tokens, 1, WIDTH] to logits."""
    random = np.random.default_rng(0)
    source = ops.parameter([-1, 1, WIDTH], ov.Type.f32, name="x")
    source.output(0).set_names({"x"})
    scales = random.uniform(0.001, 0.01, scale).astype({"f16": np.float16, "f32": np.float32}[kind])
    weight = ops.multiply(ops.convert(ops.constant(rows(random)), kind), ops.constant(scales))
    if kind != "f32":
        weight = ops.convert(weight, "f32")
    return finished(source, weight)


def finished(source: Any, weight: Any, *, turned: bool = True) -> Any:
    end = ops.matmul(source, weight, False, turned)
    end.output(0).set_names({"logits"})
    return ov.Model([end], [source])


def logits(model: Any, positions: NDArray[np.float32]) -> NDArray[np.float32]:
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return by_position(compiled([positions])["logits"])


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("scale", [(VOCABULARY, 1), (1, 1)], ids=["by row", "one"])
def test_logits_are_those_of_inputs_of_14_bits(
    tokens: int, kind: str, scale: tuple[int, ...]
) -> None:
    positions = np.random.default_rng(1).normal(size=(tokens, 1, WIDTH)).astype(np.float32)
    positions[0, 0, :4] = [9, -9, 0, 9]
    dense, convolved = decoder(kind, scale=scale), decoder(kind, scale=scale)
    assert convolve_head(openvino_core(), convolved)
    one, two = logits(dense, positions), logits(convolved, positions)
    assert one.shape == two.shape == (tokens, VOCABULARY)
    # Half a step of each input, at worst all in the same direction.
    [[weight]] = [[node for node in dense.get_ops() if node.get_type_name() == "MatMul"]]
    of_ones = ov.Model([ops.abs(weight.input_value(1))], [])
    [weights] = openvino_core().compile_model(of_ones, "CPU")([]).values()
    steps = np.abs(positions).max(axis=(1, 2)) / LARGEST
    worst = 0.5 * steps[:, None] * weights.sum(1)
    assert (np.abs(one - two) <= 1.01 * worst + 1e-5).all()
    assert np.abs(one - two).max() < 2e-4 * np.abs(one).max()


def test_inputs_in_a_few_steps_are_exact() -> None:
    """Whole multiples of a step: nothing is rounded, so not a bit of an input may be lost."""
    random = np.random.default_rng(2)
    positions = random.integers(-LARGEST, LARGEST + 1, (2, 1, WIDTH)).astype(np.float32)
    positions[:, 0, 0] = LARGEST
    dense, convolved = decoder(), decoder()
    convolve_head(openvino_core(), convolved)
    one, two = logits(dense, positions), logits(convolved, positions)
    assert np.abs(one - two).max() < 1e-5 * np.abs(one).max()


def test_a_position_of_zeros_has_logits_of_zero() -> None:
    model = decoder()
    convolve_head(openvino_core(), model)
    found = logits(model, np.zeros((1, 1, WIDTH), np.float32))
    assert np.abs(found).max() < 1e-20


def test_what_is_no_number_stays_none() -> None:
    """Sampling refuses it and says so; numbers in its place would be a reply."""
    model = decoder()
    convolve_head(openvino_core(), model)
    positions = np.ones((1, 1, WIDTH), np.float32)
    for at, value in [(0, np.nan), (WIDTH // 2, -np.nan), (WIDTH - 1, np.inf), (3, -np.inf)]:
        broken = positions.copy()
        broken[0, 0, at] = value
        assert np.isnan(logits(model, broken)).all()


def test_weights_stored_in_another_way_stay() -> None:
    random = np.random.default_rng(0)
    source = ops.parameter([-1, 1, WIDTH], ov.Type.f32)
    stored = ops.convert(ops.constant(rows(random)), "f32")
    bytes_ = ops.convert(ops.constant(rows(random).view(np.uint8)), "f32")
    shifted = ops.subtract(bytes_, ops.constant(np.float32(128)))
    by_input = ops.multiply(stored, ops.constant(np.ones((1, WIDTH), np.float32)))
    floats = ops.constant(random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32))
    turned = ops.convert(ops.constant(rows(random).T.copy()), "f32")
    for model in [
        *(finished(source, weight) for weight in (floats, shifted, by_input)),
        finished(source, turned, turned=False),
    ]:
        assert not convolve_head(openvino_core(), model)
        assert [node.get_type_name() for node in model.get_ops()].count("Convolution") == 0


def test_a_cpu_with_a_better_kernel_keeps_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_head, "gemm_is_slow", lambda core: False)
    assert not convolve_head(openvino_core(), decoder())


def test_the_layer_is_multiplied_in_8_bits() -> None:
    if not gemm_is_slow(openvino_core()):
        pytest.skip("this CPU has VNNI or better: its layer stays as it is")
    model = decoder()
    convolve_head(openvino_core(), model)
    runtime = openvino_core().compile_model(model, "CPU", {}).get_runtime_model()
    kernels = {
        node.get_rt_info()["layerType"].astype(str): node.get_rt_info()["primitiveType"].astype(str)
        for node in runtime.get_ops()
    }
    assert kernels["Convolution"].endswith("I8")
    assert "FullyConnected" not in kernels
