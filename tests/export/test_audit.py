"""What is read back from a written graph, and what is refused with its name."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from laco_export.audit import audit_decoder, audit_encoder
from laco_export.operators import UnsupportedNode, operators, refuse_unsupported, unsupported
from laco_export.static_shapes import ENCODER_OPS
from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import GraphSpec


def test_the_merge_is_printed_as_it_stands_in_the_graph(encoder: Path) -> None:
    audit = audit_encoder(encoder)
    assert set(audit.operators) <= ENCODER_OPS
    nodes = onnx.load(encoder, load_external_data=False).graph.node
    assert sum(audit.operators.values()) == len(nodes)
    counts, head, *lines = audit.lines()
    assert counts.startswith("operators: ")
    assert head == "after block 2: 64 -> 16 tokens of width 32"
    # Windows of 2 x 2, side by side in the last axis; two products; the mean over each window.
    kinds = [line.split()[0] for line in lines]
    assert kinds[:3] == ["Reshape", "Transpose", "Reshape"]
    assert kinds.count("MatMul") == 2
    assert "  MatMul [tiles, 16, 128] x [128, 32] -> [tiles, 16, 32]" in lines
    assert "  ReduceMean [tiles, 16, 4, 32] -> [tiles, 16, 32] (axes [2])" in lines
    assert lines[-1] == "  Add [tiles, 16, 32] x [tiles, 16, 32] -> [tiles, 16, 32]"


def test_a_long_merge_is_cut_short_in_print(encoder: Path) -> None:
    [merge] = audit_encoder(encoder).merges
    lines = merge.lines(most=3)
    assert len(lines) == 5
    assert lines[-1] == f"  and {len(merge.nodes) - 3} more operators"


def small_graph(path: Path, *nodes: onnx.NodeProto) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tiles", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), path)
    return path


def test_operators_that_a_target_does_not_take_are_named_with_node_and_way_out(
    tmp_path: Path,
) -> None:
    path = small_graph(
        tmp_path / "small.onnx",
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("FusedGelu", ["a"], ["b"], name="mlp/gelu", domain="com.microsoft"),
        helper.make_node("NonZero", ["b"], ["y"]),
    )
    assert operators(path) == {"NonZero": 1, "Relu": 1, "com.microsoft::FusedGelu": 1}
    allowed = frozenset({"Relu"})
    assert unsupported(path, allowed) == (
        UnsupportedNode("mlp/gelu", "com.microsoft::FusedGelu"),
        UnsupportedNode("y", "NonZero"),
    )
    with pytest.raises(ExportError) as caught:
        refuse_unsupported(path, allowed, "TensorRT", "Export for another target")
    assert str(caught.value) == (
        "small.onnx has operators that TensorRT does not take: com.microsoft::FusedGelu, NonZero "
        "(node 'mlp/gelu' and 1 more). Export for another target."
    )
    refuse_unsupported(path, allowed | set(operators(path)), "TensorRT", "Nothing")


def test_an_operator_in_an_inner_graph_is_found(tmp_path: Path) -> None:
    def branch(kind: str) -> onnx.GraphProto:
        node = helper.make_node(kind, ["x"], [kind])
        return helper.make_graph(
            [node], kind, [], [helper.make_tensor_value_info(kind, TensorProto.FLOAT, None)]
        )

    path = small_graph(
        tmp_path / "small.onnx",
        helper.make_node("IsNaN", ["x"], ["nans"]),
        helper.make_node(
            "If", ["nans"], ["y"], then_branch=branch("Relu"), else_branch=branch("Selu")
        ),
    )
    found = unsupported(path, frozenset({"IsNaN", "If", "Relu"}))
    assert [node.operator for node in found] == ["Selu"]


def test_a_graph_of_another_kind_is_not_an_encoder_or_decoder(
    flavours: dict[str, tuple[Path, GraphSpec]],
) -> None:
    with pytest.raises(ExportError, match=r"that a vision encoder does not take: .*Cos"):
        audit_encoder(flavours["stateful"][0])
    with pytest.raises(
        ExportError,
        match=r"concat does not take: .*com.microsoft::Group.*another flavour \(stateful,",
    ):
        audit_decoder(flavours["contrib"][0], "concat")
