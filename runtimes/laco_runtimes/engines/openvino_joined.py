"""Dense layers that read the same input as one layer, whose output is cut again.

A decoding step waits for each layer to start and to end: query, key and value in one product take
3 to 6 % off a step of a small model (docs/runtime.md). Outputs have scales of their own, so nothing
else changes. In memory alone, see `openvino_graph`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from openvino import Model, Node, Output

COMPRESSED = frozenset({"i8", "u8", "i4", "u4"})
"""Weights that are joined."""

LARGEST = 4 << 20
"""Bytes of joined weights that are worth it. They stay in memory, where the file's own are mapped
and can go: gate and up of Qwen2.5-0.5B in int8 held 225 MB for another percent of a step, query,
key and value hold 17 MB."""

CHAIN = frozenset({"Convert", "Multiply", "Subtract"})
"""What stands between compressed weights and the layer that reads them; int4 has a Reshape too."""


class _DifferentError(Exception):
    """These layers cannot be joined; never leaves this module."""


def join_layers(model: Model) -> int:
    """Join the compressed dense layers of each input.

    Returns:
        How many layers there are less. Those whose weights are stored in different ways stay.
    """
    saved = 0
    for source in [port for node in model.get_ordered_ops() for port in node.outputs()]:
        readers = [port.get_node() for port in source.get_target_inputs() if port.get_index() == 0]
        # A port's readers come in the order of their addresses.
        layers = sorted(filter(_is_compressed, readers), key=lambda one: one.get_friendly_name())
        if len(layers) > 1 and _join(layers):
            saved += len(layers) - 1
    if saved:
        model.validate_nodes_and_infer_types()
    return saved


def _is_compressed(layer: Node) -> bool:
    if layer.get_type_name() != "MatMul":
        return False
    source = _source(layer.input_value(1).get_node())
    kind = str(source.get_element_type().get_type_name())
    return _is_constant(source) and kind in COMPRESSED


def _source(weight: Node) -> Node:
    """What a weight is made of, before anything is done to it."""
    while weight.get_type_name() in CHAIN or weight.get_type_name() == "Reshape":
        weight = weight.input_value(0).get_node()
    return weight


def _stored_bytes(weight: Node) -> int:
    source = _source(weight)
    weights = math.prod(int(size) for size in source.get_output_shape(0))
    return weights * int(source.get_element_type().bitwidth) // 8


def _join(layers: Sequence[Node]) -> bool:
    """Whether it could be done; nothing is changed otherwise."""
    from openvino import opset13 as ops

    if not all(layer.get_attributes()["transpose_b"] for layer in layers):
        return False
    adds = [add for add in map(_bias, layers) if add is not None]
    if adds and len(adds) < len(layers):
        return False
    ends = adds or layers
    rows = [int(layer.input_value(1).get_shape()[0]) for layer in layers]
    if sum(_stored_bytes(layer.input_value(1).get_node()) for layer in layers) > LARGEST:
        return False
    try:
        weight = _stacked([layer.input_value(1).get_node() for layer in layers], rows)
        wide = ops.matmul(layers[0].input_value(0), weight, False, True)
        wide.set_friendly_name("+".join(layer.get_friendly_name() for layer in layers))
        if adds:
            wide = ops.add(wide, _stacked([add.input_value(1).get_node() for add in adds], rows))
    except _DifferentError:
        return False
    parts = ops.variadic_split(wide, ops.constant(np.int64(-1)), ops.constant(np.array(rows)))
    for end, part in zip(ends, parts.outputs(), strict=True):
        for reader in list(end.output(0).get_target_inputs()):
            reader.replace_source_output(part)
    return True


def _bias(layer: Node) -> Node | None:
    """The Add of a constant vector that alone reads a layer."""
    readers = [(port.get_node(), port.get_index()) for port in layer.output(0).get_target_inputs()]
    if [(node.get_type_name(), port) for node, port in readers] != [("Add", 0)]:
        return None
    add = readers[0][0]
    vector = add.input_value(1).get_node()
    width = int(layer.input_value(1).get_shape()[0])
    return add if _is_constant(vector) and list(vector.shape) == [width] else None


def _is_constant(node: Node) -> bool:
    return bool(node.get_type_name() == "Constant")


def _stacked(nodes: Sequence[Node], rows: Sequence[int]) -> Node:
    """Weights [rows, ...] below one another, with all that is done to them.

    Raises:
        _DifferentError: not the same is done to all of them.
    """
    from openvino import opset13 as ops

    first = nodes[0]
    kinds = {(node.get_type_name(), str(node.get_element_type())) for node in nodes}
    if len(kinds) > 1:
        raise _DifferentError
    if _is_constant(first):
        return _constants(nodes, rows)
    made: Node
    if first.get_type_name() == "Reshape":
        tail = list(first.get_output_shape(0))[1:]
        shape = ops.constant(np.array([sum(rows), *tail], np.int64))
        made = ops.reshape(_below(nodes, rows, 0), shape, special_zero=False)
    elif first.get_type_name() == "Convert":
        made = ops.convert(_below(nodes, rows, 0), first.get_element_type().get_type_name())
    elif first.get_type_name() in CHAIN:
        change = {"Multiply": ops.multiply, "Subtract": ops.subtract}[first.get_type_name()]
        made = change(_below(nodes, rows, 0), _below(nodes, rows, 1))
    else:
        raise _DifferentError
    for key, value in first.get_rt_info().items():
        made.get_rt_info()[key] = value
    return made


def _below(nodes: Sequence[Node], rows: Sequence[int], port: int) -> Output:
    return _stacked([node.input_value(port).get_node() for node in nodes], rows).output(0)


def _constants(nodes: Sequence[Node], rows: Sequence[int]) -> Node:
    """Byte by byte, whatever the type: rows lie behind one another."""
    from openvino import Shape, Tensor
    from openvino.op import Constant

    shapes = [list(node.shape) for node in nodes]
    tail = shapes[0][1:]
    if shapes != [[count, *tail] for count in rows]:
        raise _DifferentError  # a scale for the whole layer, say
    kind = nodes[0].get_element_type()
    parts = [np.asarray(node.data).reshape(-1).view(np.uint8) for node in nodes]
    size = kind.bitwidth * int(np.prod(tail))  # bits of a row
    if any(8 * part.size != size * count for part, count in zip(parts, rows, strict=True)):
        raise _DifferentError  # rows of 4 bits that end in the middle of a byte
    joined = Tensor(kind, Shape([sum(rows), *tail]))
    np.concatenate(parts, out=joined.data.reshape(-1).view(np.uint8))
    return Constant(joined, shared_memory=True)


__all__ = ["COMPRESSED", "LARGEST", "join_layers"]
