"""Graphs in half precision: what stays in float32, what they answer, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from laco_export.flavours import FLAVOURS
from laco_export.half import HalfName, check_strong_types, to_half
from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import CacheDType, DecoderForm, GraphSpec, TensorSpec
from tests.export.flavour_engines import (
    CAPACITY,
    FACTS,
    Decoder,
    Talk,
    largest_difference,
    small_model,
    talk,
)

Written = dict[str, tuple[Path, GraphSpec]]
NORMS = ("RMSNormalization", "LayerNormalization", "SkipSimplifiedLayerNormalization", "Sqrt")
KINDS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
KINDS |= {TensorProto.BFLOAT16: "bfloat16"}


@pytest.fixture(scope="module")
def reference() -> Talk:
    return talk(small_model())


def halved(
    flavours: Written, name: str, dtype: HalfName, cache: CacheDType, folder: Path
) -> tuple[Path, GraphSpec]:
    flavour = FLAVOURS[name]
    capacity = CAPACITY if name == "static" else None
    spec = flavour.spec(FACTS, DecoderForm(flavour.name, cache, capacity))
    path = folder / f"{flavour.stem}.onnx"
    return to_half(flavours[name][0], path, dtype, spec), spec


def types(graph: onnx.GraphProto) -> dict[str, str]:
    """Float type of every value."""
    found = {one.name: one.data_type for one in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        found[value.name] = value.type.tensor_type.elem_type
    return {name: KINDS[kind] for name, kind in found.items() if kind in KINDS}


@pytest.mark.parametrize("cache", ["float16", "float32"])
@pytest.mark.parametrize("name", FLAVOURS)
def test_float16_answers_nearly_as_transformers_does(
    flavours: Written, reference: Talk, name: str, cache: CacheDType, tmp_path: Path
) -> None:
    path, spec = halved(flavours, name, "float16", cache, tmp_path)
    difference = largest_difference(Decoder(path, spec, name == "static"), reference)
    # One rounding to 11 bits is 5e-4 of a value; exactly nothing would mean float32.
    assert 0 < difference < 5e-3 * np.abs(reference.expected).max()


@pytest.mark.parametrize("name", FLAVOURS)
def test_bfloat16_is_typed_as_float16_is(flavours: Written, name: str, tmp_path: Path) -> None:
    path, spec = halved(flavours, name, "bfloat16", "bfloat16", tmp_path)
    graph = onnx.load(path, load_external_data=False).graph
    found = types(graph)
    for one in (*spec.inputs, *spec.outputs):
        cached = one.name.startswith(("past_key_values.", "present."))
        assert found.get(one.name, one.dtype) == ("bfloat16" if cached else one.dtype)
    assert "float16" not in found.values()
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert {found[value] for node in products for value in node.input} == {"bfloat16"}


def test_bfloat16_answers_nearly_as_transformers_does(
    flavours: Written, reference: Talk, tmp_path: Path
) -> None:
    # No engine has bfloat16 kernels on every CPU; ONNX's own evaluator computes it, slowly.
    path, spec = halved(flavours, "concat", "bfloat16", "bfloat16", tmp_path)
    prompt = 5
    shape = (1, FACTS.kv_heads, 0, FACTS.head_dim)
    inputs: dict[str, NDArray[np.generic]] = {
        one.name: np.zeros(shape, ml_dtypes.bfloat16) for one in spec.inputs[3:]
    }
    inputs["inputs_embeds"] = reference.embeds[:, :prompt]
    inputs["attention_mask"] = np.ones((1, prompt), np.int64)
    inputs["position_ids"] = np.arange(prompt)[None]
    results: list[Any] = ReferenceEvaluator(str(path)).run(["logits"], inputs)  # type: ignore[assignment]
    logits = np.asarray(results[0])[0, 0]
    expected = reference.expected[prompt - 1]
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected).max() < 4e-2 * np.abs(expected).max()


@pytest.mark.parametrize("name", FLAVOURS)
def test_norms_residual_stream_and_angles_stay_in_float32(
    flavours: Written, name: str, tmp_path: Path
) -> None:
    path, _ = halved(flavours, name, "float16", "float16", tmp_path)
    graph = onnx.load(path, load_external_data=False).graph
    found = types(graph)
    kinds: dict[str, set[str]] = {}
    for node in graph.node:
        read = [value for value in node.input if value in found]
        kinds.setdefault(node.op_type, set()).update(found[value] for value in read)
    for kind in {*NORMS, "Cos", "Sin", "ReduceMean"} & set(kinds):
        assert kinds[kind] == {"float32"}, kind
    for kind in {"MatMul", "Attention", "GroupQueryAttention", "RotaryEmbedding", "Softmax"}:
        assert kinds.get(kind, {"float16"}) == {"float16"}, kind
    if name != "contrib":  # where a skip norm adds
        # Two sums per layer in float32; what is added to a product as its bias is in float16.
        sums = Counter(found.get(n.output[0]) for n in graph.node if n.op_type == "Add")
        assert sums["float32"] >= 2 * FACTS.layers


def test_the_residual_stream_can_be_given_up(flavours: Written, tmp_path: Path) -> None:
    path, spec = flavours["contrib"]
    spec = FLAVOURS["contrib"].spec(FACTS, DecoderForm("contrib", "float16"))
    out = to_half(path, tmp_path / "half.onnx", "float16", spec, fp32_residual=False)
    graph = onnx.load(out, load_external_data=False).graph
    found = types(graph)
    skips = [one for one in graph.node if one.op_type == "SkipSimplifiedLayerNormalization"]
    assert {found[value] for node in skips for value in node.input} == {"float16"}
    whole = to_half(path, tmp_path / "whole.onnx", "float16", spec)
    assert casts(out) < casts(whole)


def casts(path: Path) -> int:
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type == "Cast" for node in nodes)


def test_a_static_cache_is_written_in_place_in_its_own_type(
    flavours: Written, tmp_path: Path
) -> None:
    path, _ = halved(flavours, "static", "float16", "float32", tmp_path)
    graph = onnx.load(path, load_external_data=False).graph
    for node in graph.node:
        if node.op_type == "TensorScatter":
            assert node.input[0].startswith("past_key_values.")
            assert node.output[0].startswith("present.")


def test_weights_are_half_as_large(flavours: Written, tmp_path: Path) -> None:
    path, _ = halved(flavours, "concat", "float16", "float16", tmp_path)
    whole = sum(weight.numel() for weight in small_model().parameters())
    norms = (2 * FACTS.layers + 1) * FACTS.hidden_size
    size = (tmp_path / f"{path.name}.data").stat().st_size
    assert 1.99 * whole <= size <= 2 * whole + 2 * norms + 64 * 40


def graph_file(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, NDArray[np.generic]]
) -> Path:
    """x [tiles, 4] -> y."""
    dims: list[str | int | None] = ["tiles", 4]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


SPEC = GraphSpec(
    "small",
    (TensorSpec("x", "float32", ("tiles", 4)),),
    (TensorSpec("y", "float32", ("tiles", 4)),),
)


def test_a_weight_that_float16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    weight = np.eye(4, dtype=np.float32)
    weight[1, 2] = -1e5
    nodes = [helper.make_node("MatMul", ["x", "blocks.3.weight"], ["y"])]
    source = graph_file(tmp_path / "source.onnx", nodes, {"blocks.3.weight": weight})
    # So large that it goes to the file of weights, and so small that it does not.
    with pytest.raises(ExportError, match=r"'blocks.3.weight' holds -100000.*Export with bf16"):
        to_half(source, tmp_path / "half.onnx", "float16", SPEC)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.onnx"]
    to_half(source, tmp_path / "half.onnx", "bfloat16", SPEC)


def mixed(path: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["low", "weight"], ["y"], name="product"),
    ]
    return graph_file(path, nodes, {"weight": np.eye(4, dtype=np.float32)})


def contrib_mixed(path: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT16),
        helper.make_node(
            "SkipSimplifiedLayerNormalization",
            ["x", "low", "weight"],
            ["y"],
            name="product",
            domain="com.microsoft",
        ),
    ]
    return graph_file(path, nodes, {"weight": np.ones(4, np.float32)})


@pytest.mark.parametrize("make", [mixed, contrib_mixed])
def test_mixed_types_are_refused_with_the_node(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path / "mixed.onnx")
    with pytest.raises(ExportError, match=r"'product' of mixed.onnx mixes types.*low is FLOAT16"):
        check_strong_types(path)


def test_an_encoder_in_float16_sees_nearly_the_same(encoder: Path, tmp_path: Path) -> None:
    [before, *_] = onnx.load(encoder, load_external_data=False).graph.input
    shape = [dim.dim_param or dim.dim_value for dim in before.type.tensor_type.shape.dim]
    whole = onnxruntime.InferenceSession(encoder)
    [result] = whole.get_outputs()
    spec = GraphSpec(
        "vision_encoder",
        (TensorSpec("pixel_values", "float32", tuple(shape)),),
        (TensorSpec("image_features", "float32", tuple(result.shape)),),
    )
    path = to_half(encoder, tmp_path / "vision_encoder.onnx", "float16", spec)
    pixels = np.random.default_rng(0).standard_normal((2, *shape[1:])).astype(np.float32)
    [expected] = whole.run(None, {"pixel_values": pixels})
    [found] = onnxruntime.InferenceSession(path).run(None, {"pixel_values": pixels})
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosine = (found * expected).sum(-1) / norms
    assert cosine.min() > 0.9999
    assert not np.array_equal(found, expected)
