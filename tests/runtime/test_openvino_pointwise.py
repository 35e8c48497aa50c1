"""Dense layers in 8 bits as convolutions: the same numbers, and nothing else touched."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ov = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from laco_runtimes.engines.openvino import Vision, openvino_core, prepare_encoder  # noqa: E402
from laco_runtimes.engines.openvino_pointwise import convolve_layers, gemm_is_slow  # noqa: E402

TOKENS, WIDTH, HEADS = 12, 32, 4
SCALE = 0.02


def weight(random: np.random.Generator, out: int, width: int, *, turned: bool) -> Any:
    """Of 7 bits, as the export writes them; [out, width], or turned."""
    values = random.integers(-63, 64, (out, width)).astype(np.int8)
    scales = random.uniform(SCALE / 2, SCALE, (out, 1)).astype(np.float32)
    if turned:
        values, scales = values.T.copy(), scales.T.copy()
    return ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scales))


def rounded(source: Any, *, step: float = 0.03, zero: int = 128) -> Any:
    """To 256 steps, of which `zero` is nothing."""
    low, high = -zero * step, (255 - zero) * step
    return ops.fake_quantize(source, *map(ops.constant, map(np.float32, [low, high] * 2)), 256)


def layer(random: np.random.Generator, source: Any, out: int, *, turned: bool = False) -> Any:
    width = int(source.get_output_partial_shape(0)[-1].get_length())
    return ops.matmul(source, weight(random, out, width, turned=turned), False, not turned)


def block(x: str = "x", y: str = "y", *, turned: bool = False) -> Any:
    """Attention and an MLP with a gate on [B, TOKENS, WIDTH], all dense layers in 8 bits."""
    random = np.random.default_rng(0)
    source = ops.parameter([-1, TOKENS, WIDTH], ov.Type.f32, name=x)
    source.output(0).set_names({x})
    first = rounded(source)
    apart = []
    for _ in range(3):
        vector = ops.constant(random.normal(size=WIDTH).astype(np.float32))
        made = ops.add(layer(random, first, WIDTH, turned=turned), vector)
        heads = ops.reshape(made, np.array([0, TOKENS, HEADS, WIDTH // HEADS]), True)
        apart.append(ops.transpose(heads, np.array([0, 2, 1, 3])))
    attended = ops.transpose(ops.scaled_dot_product_attention(*apart), np.array([0, 2, 1, 3]))
    tokens = ops.reshape(attended, np.array([0, TOKENS, WIDTH]), True)
    stream = ops.add(source, layer(random, rounded(tokens), WIDTH, turned=turned))
    inner = rounded(stream, step=0.06, zero=110)
    gate, up = (layer(random, inner, 2 * WIDTH, turned=turned) for _ in range(2))
    smooth = ops.constant(random.uniform(0.5, 1, (1, 1, 2 * WIDTH)).astype(np.float32))
    wide = ops.multiply(ops.multiply(ops.gelu(gate, "erf"), up), smooth)
    down = layer(random, rounded(wide, step=0.06, zero=96), WIDTH, turned=turned)
    places = ops.constant(random.normal(size=(1, TOKENS, WIDTH)).astype(np.float32))
    last = ops.add(ops.add(stream, down), places)
    end = layer(random, rounded(last, step=0.12), WIDTH, turned=turned)
    end.output(0).set_names({y})
    return ov.Model([end], [source])


def kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def outputs(model: Any, rows: int = 2) -> NDArray[np.float32]:
    request = openvino_core().compile_model(model, "CPU", {}).create_infer_request()
    x = np.random.default_rng(1).normal(size=(rows, TOKENS, WIDTH)).astype(np.float32)
    found = [request.infer({"x": x[row : row + 1]})["y"].copy() for row in range(rows)]
    return np.concatenate(found)


@pytest.mark.parametrize("turned", [False, True], ids=["rows are outputs", "rows are inputs"])
def test_convolutions_give_the_same_numbers(turned: bool) -> None:
    dense, convolved = block(turned=turned), block(turned=turned)
    assert convolve_layers(convolved) == 8
    assert kinds(convolved)["Convolution"] == 8
    assert kinds(convolved)["MatMul"] == 0
    one, two = outputs(dense), outputs(convolved)
    # A number that falls between two steps of the next layer's input may go to either: no maximum.
    assert np.abs(one - two).mean() < 1e-3 * np.abs(one).mean()


@pytest.mark.parametrize("turned", [False, True], ids=["of inputs", "of outputs"])
def test_a_scale_of_one_dimension_is_broadcast_as_it_was(turned: bool) -> None:
    random = np.random.default_rng(0)
    stored = ops.constant(random.integers(-63, 64, (WIDTH, WIDTH)).astype(np.int8))
    scale = ops.constant(random.uniform(SCALE / 2, SCALE, WIDTH).astype(np.float32))
    models = []
    for _ in range(2):
        source = ops.parameter([-1, TOKENS, WIDTH], ov.Type.f32, name="x")
        source.output(0).set_names({"x"})
        scaled = ops.multiply(ops.convert(stored, "f32"), scale)
        end = ops.matmul(rounded(source), scaled, False, not turned)
        end.output(0).set_names({"y"})
        models.append(ov.Model([end], [source]))
    assert convolve_layers(models[1]) == 1
    one, two = map(outputs, models)
    assert np.abs(one - two).max() < 1e-5 * np.abs(one).max()


def test_the_layers_of_an_mlp_follow_one_another_as_images() -> None:
    model = block()
    convolve_layers(model)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Gelu":
            assert len(node.get_output_partial_shape(0)) == 4
    # From tokens: the block's input, attention's output, the MLP's input, the last layer's. To
    # tokens: query, value, attention's and the MLP's contribution, the end; and the key's heads.
    turned = [
        list(node.input_value(1).get_node().data)
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Transpose"
    ]
    assert turned.count([0, 3, 1, 2]) == 4
    assert turned.count([0, 2, 3, 1]) == 5
    assert turned.count([0, 1, 3, 2]) == 1


def test_one_tile_moves_nothing_between_tokens_and_images() -> None:
    if not gemm_is_slow(openvino_core()):
        pytest.skip("this CPU has VNNI or better: its layers stay as they are")
    model = block()
    prepare_encoder(openvino_core(), model)
    assert model.input("x").partial_shape.is_static
    runtime = openvino_core().compile_model(model, "CPU", {}).get_runtime_model()
    kernels = [node.get_rt_info()["primitiveType"].astype(str) for node in runtime.get_ops()]
    assert not any("gemm" in kernel for kernel in kernels if "I8" in kernel or "i8" in kernel)
    layouts = Counter(node.get_rt_info()["layerType"].astype(str) for node in runtime.get_ops())
    assert layouts["Convolution"] == 8
    assert layouts["Transpose"] == 0


def test_an_encoder_of_one_tile_encodes_several() -> None:
    tiles = np.random.default_rng(2).normal(size=(3, TOKENS, WIDTH)).astype(np.float32)

    def encoded(*, one_by_one: bool) -> NDArray[np.float32]:
        model = block("pixel_values", "image_features")
        if one_by_one:
            convolve_layers(model)
            model.reshape([1, TOKENS, WIDTH])
        return Vision(openvino_core().compile_model(model, "CPU").create_infer_request).encode(
            tiles
        )

    one, two = encoded(one_by_one=True), encoded(one_by_one=False)
    assert one.shape == two.shape == (3, TOKENS, WIDTH)
    assert np.abs(one - two).mean() < 1e-3 * np.abs(one).mean()


def test_what_is_not_in_8_bits_stays() -> None:
    random = np.random.default_rng(0)
    tokens = ops.parameter([-1, TOKENS, WIDTH], ov.Type.f32)
    quarter = -32 * 0.03 + 0.25 * 0.03
    shifted = [np.float32(bound) for bound in (quarter, quarter + 255 * 0.03)]
    apart = ops.fake_quantize(tokens, *map(ops.constant, [*shifted, *shifted]), 256)
    fewer = ops.fake_quantize(tokens, *map(ops.constant, map(np.float32, [-1, 1, -1, 1])), 255)
    free = ops.parameter([-1, -1, WIDTH], ov.Type.f32)
    rows = ops.parameter([TOKENS, WIDTH], ov.Type.f32)
    floats = ops.constant(random.normal(size=(WIDTH, WIDTH)).astype(np.float32))
    ends = [
        layer(random, tokens, WIDTH),  # an input of floats
        ops.matmul(rounded(tokens), floats, False, True),
        layer(random, rounded(free), WIDTH),  # tokens nobody knows the number of
        layer(random, rounded(rows), WIDTH),
        layer(random, apart, WIDTH),  # zero is between two steps
        layer(random, fewer, WIDTH),
    ]
    model = ov.Model(ends, [tokens, free, rows])
    before = kinds(model)
    assert convolve_layers(model) == 0
    assert kinds(model) == before


def test_it_is_the_cpu_without_vnni_that_is_slow() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine().lower() not in ("x86_64", "amd64") or not cpuinfo.exists():
        pytest.skip("only Linux on x86 says what its CPU has")
    flags = set(cpuinfo.read_text().split())
    fast = {"avx_vnni", "avx512_vnni", "amx_int8"} & flags
    assert gemm_is_slow(openvino_core()) is not bool(fast)
