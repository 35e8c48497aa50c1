"""What every exported encoder must be: static, but for the number of tiles."""

from __future__ import annotations

from pathlib import Path

import onnx

from laco_export.onnx_writer import ENCODER_OPS

DYNAMIC = {
    *("Shape", "Gather", "GatherND", "GatherElements", "If", "Loop", "Scan", "Scatter", "Resize"),
    *("ScatterND", "ScatterElements", "NonZero", "Range", "Where", "Expand", "Tile", "Split"),
    *("Cast", "Unsqueeze", "Squeeze", "TopK"),
}
"""Operators that compute shapes or places while a graph runs, or come along with those."""


def assert_static_but_for_tiles(path: Path) -> set[str]:
    """Read the file back and check every node; the operators used are returned."""
    graph = onnx.load(path, load_external_data=False).graph
    used = {node.op_type for node in graph.node}
    assert used <= ENCODER_OPS
    assert not used & DYNAMIC
    constants = {one.name for one in graph.initializer}
    values = {one.name: one.type.tensor_type for one in (*graph.input, *graph.value_info)}
    values |= {one.name: one.type.tensor_type for one in graph.output}
    for node in graph.node:
        for name in node.input:  # where to cut, what to make of it: never computed
            if name and name not in constants:
                assert values[name].elem_type == onnx.TensorProto.FLOAT, f"{node.name}: {name}"
        for name in node.output:
            dims = values[name].shape.dim
            assert len(dims) <= 4, name
            assert all(dim.dim_value > 0 for dim in dims[1:]), name
            assert dims[0].dim_value > 0 or dims[0].dim_param.endswith("tiles"), name
    return used
