"""What is done to OpenVINO graphs between reading and compiling them.

The files are for `openvino_genai` too, so they stay as they are; what only this runtime makes use
of is changed in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.base import Floats

if TYPE_CHECKING:
    from openvino import Model, Node, Output

FIRST_LOGIT = "first_logit"
"""Input of a decoder after `keep_positions`: the first position with logits, counted from the end
as in Python, [1] of int64."""

BY_POSITION = frozenset(
    {
        *("Add", "Subtract", "Multiply", "Divide", "MatMul", "Power", "Sqrt", "Convert"),
        *("ReduceMean", "Sigmoid", "Swish", "RMS"),
    }
)
"""Operators of a decoder that, on [batch, sequence, width], treat positions alone."""

Rows = Callable[[NDArray[np.int64]], NDArray[Any]]
"""Some rows of a table."""


def keep_positions(model: Model) -> bool:
    """Let a decoder be told how many of the last positions it gives logits of.

    It is written with `Slice`s that keep the last position in front of its norm. They begin at an
    input now, `FIRST_LOGIT`, and are moved up to where positions last exchange something, behind
    the last attention: a prefill spares the last layer's MLP for all positions but the last.

    Returns:
        Whether the graph has such slices; it is unchanged otherwise.
    """
    from openvino import Type
    from openvino import opset13 as ops

    slices = [node for node in model.get_ordered_ops() if _keeps_last(node)]
    if not slices:
        return False
    first = ops.parameter([1], Type.i64, name=FIRST_LOGIT)
    first.output(0).set_names({FIRST_LOGIT})
    end, stride, axis = (slices[0].input_value(port) for port in (2, 3, 4))

    inside = _only_for(slices, model)
    cuts: dict[tuple[str, int], Output] = {}
    for node in inside.values():
        for port in node.inputs():
            source = port.get_source_output()
            outside = source.get_node().get_friendly_name() not in inside
            if outside and _has_positions(source):
                key = source.get_node().get_friendly_name(), source.get_index()
                if key not in cuts:
                    cuts[key] = ops.slice(source, first, end, stride, axis).output(0)
                port.replace_source_output(cuts[key])
    for node in slices:
        source = node.input_value(0)
        if source.get_node().get_friendly_name() in inside:
            node.output(0).replace(source)
        else:
            node.input(1).replace_source_output(first.output(0))
    model.add_parameters([first])
    model.validate_nodes_and_infer_types()
    return True


def _keeps_last(node: Node) -> bool:
    """Slice(x, -1, the end, 1, axis 1) of [batch, sequence, width]."""
    if node.get_type_name() != "Slice" or not _has_positions(node.input_value(0)):
        return False
    begin, _, stride, axis = (_value(node.input_value(port)) for port in range(1, 5))
    return (begin, stride, axis) == ([-1], [1], [1])


def _value(source: Output) -> list[int] | None:
    node = source.get_node()
    return list(node.get_data().ravel()) if node.get_type_name() == "Constant" else None


def _has_positions(source: Output) -> bool:
    shape = source.get_partial_shape()
    if shape.rank.is_dynamic or shape.rank.get_length() != 3:
        return False
    return bool(shape[1].is_dynamic)


def _only_for(slices: Sequence[Node], model: Model) -> dict[str, Node]:
    """Nodes that work by position and are read by one another and `slices` alone, by name."""
    inside: dict[str, Node] = {}
    readers = {node.get_friendly_name() for node in slices}
    for node in reversed(model.get_ordered_ops()):
        if node.get_type_name() not in BY_POSITION or not _has_positions(node.output(0)):
            continue
        ports = node.output(0).get_target_inputs()
        read_by = {port.get_node().get_friendly_name() for port in ports}
        if read_by and read_by <= readers:
            inside[node.get_friendly_name()] = node
            readers.add(node.get_friendly_name())
    return inside


def embedding_rows(model: Model) -> Callable[[Sequence[int]], Floats] | None:
    """The look-up that a graph of embeddings does, without an inference: its table, row by row.

    The table is read where the file is mapped into memory. None where the graph does anything else.
    """
    [result] = model.get_results()
    gather = result.input_value(0).get_node()
    if gather.get_type_name() != "Gather" or _value(gather.input_value(2)) != [0]:
        return None
    if gather.input_value(1).get_node().get_type_name() != "Parameter":
        return None
    rows = _rows(gather.input_value(0).get_node())
    if rows is None:
        return None
    count = int(gather.get_input_shape(0)[0])

    def embed(ids: Sequence[int]) -> Floats:
        places = np.asarray(ids, np.int64)
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < count:
            raise IndexError(f"token ids go from 0 to {count - 1}, and {list(ids)[:8]} was given")
        return np.ascontiguousarray(rows(places), np.float32)  # [len(ids), D]

    return embed


def _rows(node: Node) -> Rows | None:
    """Rows of Constant, Convert and what undoes a compression; None for anything else."""
    if node.get_type_name() == "Constant":
        return _constant(node)
    if node.get_type_name() == "Convert":
        return _rows(node.input_value(0).get_node())
    if node.get_type_name() not in _ARITHMETIC:
        return None
    # In float32, as the CPU plugin does: types between are those of the file.
    change = _ARITHMETIC[node.get_type_name()]
    both = [_rows(node.input_value(port).get_node()) for port in (0, 1)]
    one, two = both
    if one is None or two is None:
        return None
    left, right = one, two
    return lambda ids: change(left(ids).astype(np.float32), right(ids).astype(np.float32))


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Multiply": np.multiply,
    "Subtract": np.subtract,
}


def _constant(node: Any) -> Rows | None:
    kind = node.get_element_type().get_type_name()
    if kind not in ("f32", "f16", "bf16", "i8", "u8"):
        return None
    shape = list(node.shape)
    if len(shape) < 2 or shape[0] == 1:
        return None
    table = node.data  # the memory of `node`, which the array keeps alive
    if kind == "bf16":
        words = table.view(np.uint16)
        return lambda ids: (words[ids].astype(np.uint32) << 16).view(np.float32)
    return lambda ids: table[ids]


__all__ = ["FIRST_LOGIT", "embedding_rows", "keep_positions"]
