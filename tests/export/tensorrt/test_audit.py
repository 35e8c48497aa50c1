"""Checks 2, 5, 6 and 7 of the TensorRT path: what can be said of a graph without the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from laco_export.half import HalfName, check_strong_types, to_half
from laco_export.targets.tensorrt_audit import MAX_K, OLD_OPERATORS, OPERATORS, check_graph
from laco_runtimes import graphs
from laco_runtimes.errors import EngineError, ExportError
from laco_runtimes.graphs import DecoderForm, GraphSpec
from laco_runtimes.plan_builder import InputRange, make_profile
from laco_runtimes.plan_profiles import MAX_PIECE, make_profiles
from tests.export.flavour_engines import CAPACITY, FACTS

HALVES: tuple[HalfName, ...] = ("float16", "bfloat16")
Flavours = dict[str, tuple[Path, GraphSpec]]


def half(flavours: Flavours, name: str, dtype: HalfName, folder: Path) -> Path:
    form = DecoderForm(name, dtype, CAPACITY)  # type: ignore[arg-type]
    return to_half(flavours[name][0], folder / f"{name}.onnx", dtype, graphs.decoder(FACTS, form))


@pytest.mark.parametrize("dtype", HALVES)
def test_check_2_and_5_and_6_decoders_pass(
    flavours: Flavours, dtype: HalfName, tmp_path: Path
) -> None:
    path = half(flavours, "static", dtype, tmp_path)
    check_graph(path)
    check_strong_types(path)
    check_graph(half(flavours, "concat", dtype, tmp_path), old=True)


def test_check_2_only_the_old_flavour_is_for_old_versions(
    flavours: Flavours, tmp_path: Path
) -> None:
    path = half(flavours, "static", "float16", tmp_path)
    with pytest.raises(ExportError, match=r"TensorRT 10\.3 does not take: .*TensorScatter"):
        check_graph(path, old=True)


@pytest.mark.parametrize("flavour", ["stateful", "contrib"])
def test_check_2_flavours_of_other_engines_are_refused(flavours: Flavours, flavour: str) -> None:
    if flavour not in flavours:
        pytest.skip("this flavour was not written")
    with pytest.raises(ExportError, match=r"TensorRT|past|does not take"):
        check_graph(flavours[flavour][0])


@pytest.mark.parametrize("operators", [OPERATORS, OLD_OPERATORS])
def test_check_2_the_parser_knows_every_operator_of_the_table(operators: frozenset[str]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert [name for name in sorted(operators) if not parser.supports_operator(name)] == []
    assert not parser.supports_operator("NonMaxSuppressionOfAnotherKind")


def save(path: Path, *nodes: onnx.NodeProto, opset: int = 24, **values: Any) -> Path:
    """A graph with one input x of [1, 2, 8, 16] and one output y."""
    shape = (1, 2, 8, 16)
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


@pytest.mark.parametrize(
    ("nodes", "values", "said"),
    [
        (
            [helper.make_node("TopK", ["x", "k"], ["y", "places"], name="best")],
            {"k": np.array([MAX_K + 1])},
            f"node 'best'.*k is {MAX_K + 1}, and it may be at most {MAX_K}",
        ),
        (
            [helper.make_node("ScatterND", ["x", "i", "x"], ["y"], name="n", reduction="add")],
            {"i": np.zeros((1, 1), np.int64)},
            "reduction 'add'",
        ),
        (
            [
                helper.make_node(
                    "Attention", ["x", "x", "x", "", "", "", "lengths"], ["y"], name="n"
                )
            ],
            {"lengths": np.array([3])},
            "length of a padded cache, which would be ignored",
        ),
        (
            [
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="n"),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="m"),
            ],
            {"s": np.float16(1), "z": np.uint8(128)},
            "its zero point is not 0",
        ),
        (
            [helper.make_node("TensorScatter", ["x", "x", "w"], ["y"], name="n", axis=1)],
            {"w": np.array([0])},
            "another axis than -2",
        ),
        (
            [
                helper.make_node("Mul", ["x", "x"], ["inner"]),
                helper.make_node("TensorScatter", ["inner", "x", "w"], ["y"], name="n"),
            ],
            {"w": np.array([0])},
            "TensorScatter|not an input and an output of the graph",
        ),
        (
            [helper.make_node("NonZero", ["x"], ["y"], name="n")],
            {},
            r"does not take: NonZero \(node 'n'\)\. Export for onnxruntime",
        ),
    ],
)
def test_check_2_what_the_parser_would_take_wrongly_is_refused_with_its_node(
    tmp_path: Path, nodes: list[onnx.NodeProto], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExportError, match=said):
        check_graph(save(tmp_path / "graph.onnx", *nodes, **values))


def test_check_2_a_newer_operator_set_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "graph.onnx", helper.make_node("Add", ["x", "x"], ["y"]), opset=25)
    with pytest.raises(ExportError, match="operator set 25, and TensorRT reads up to 24"):
        check_graph(path)


def test_check_5_every_cache_goes_in_and_out_in_one_type_and_a_fixed_size(
    flavours: Flavours, tmp_path: Path
) -> None:
    graph = ir.load(half(flavours, "static", "float16", tmp_path)).graph
    written = [node for node in graph if node.op_type == "TensorScatter"]
    assert len(written) == 2 * FACTS.layers
    inputs, outputs = {one.name for one in graph.inputs}, {one.name for one in graph.outputs}
    for node in written:
        cache, result = node.inputs[0], node.outputs[0]
        assert cache is not None
        assert cache.name in inputs
        assert result.name in outputs
        assert str(result.name).replace("present", "past_key_values") == cache.name
        assert cache.dtype == result.dtype == ir.DataType.FLOAT16
        assert list(cache.shape or ()) == [1, FACTS.kv_heads, CAPACITY, FACTS.head_dim]


def test_check_5_a_cache_that_does_not_leave_the_graph_is_refused(
    flavours: Flavours, tmp_path: Path
) -> None:
    path = half(flavours, "static", "float16", tmp_path)
    model = ir.load(path)
    outputs = model.graph.outputs
    del outputs[1]
    ir.save(model, path)
    with pytest.raises(ExportError, match="not an input and an output of the graph"):
        check_graph(path)


def test_check_6_no_foreign_domain_and_every_zero_point_is_zero(
    flavours: Flavours, tmp_path: Path
) -> None:
    for name in ("static", "concat"):
        graph = ir.load(half(flavours, name, "float16", tmp_path)).graph
        assert {node.domain for node in graph} == {""}


SPECS = {
    "encoder": graphs.vision_encoder(56, 16, 48),
    "embed": graphs.embed_tokens(48),
    "static": graphs.decoder(FACTS, DecoderForm("static", "float16", 256)),
    "concat": graphs.decoder(FACTS, DecoderForm("concat", "float16", 256)),
}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_check_7_profiles_cover_every_dynamic_dimension_and_do_not_fall(
    name: str, apart: bool
) -> None:
    spec = SPECS[name]
    dynamic = {one.name for one in spec.inputs if any(isinstance(dim, str) for dim in one.dims)}
    for profile in make_profiles(spec, 256, apart=apart):
        assert {one.name for one in profile} == dynamic
        for one in profile:
            sizes = zip(one.smallest, one.usual, one.largest, strict=True)
            assert all(low <= usual <= high for low, usual, high in sizes)


@pytest.mark.parametrize("apart", [False, True])
def test_check_7_a_token_at_a_time_and_the_whole_cache_are_covered(apart: bool) -> None:
    [*_, step] = make_profiles(SPECS["static"], 256, apart=apart)
    [embeds, *_] = step
    assert embeds.smallest[1] == embeds.usual[1] == 1
    [prefill, *_] = make_profiles(SPECS["static"], 4096, apart=apart)
    assert prefill[0].largest[1] == MAX_PIECE
    caches = {one.largest for one in step if one.name.startswith("past")}
    assert caches == set()  # of fixed size
    [*_, grown] = make_profiles(SPECS["concat"], 256, apart=apart)
    masks = [one for one in grown if one.name == "attention_mask"]
    assert masks[0].largest[1] >= 256
    assert {one.largest[2] for one in grown if one.name.startswith("past")} == {256}


def test_check_7_a_range_that_falls_or_a_dimension_without_one_is_refused() -> None:
    with pytest.raises(EngineError, match="Give sizes that do not fall"):
        InputRange("x", (2,), (1,), (3,))
    with pytest.raises(EngineError, match="no range is given for dimension 'tiles'"):
        make_profile(SPECS["encoder"], {})
