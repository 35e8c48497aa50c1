"""Dense layers of an OpenVINO model and the order of their weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from openvino import Model, Node
    from openvino.op import Constant


def outputs_first(model: Model) -> None:
    """Weights as [outputs, inputs], the order that compressed ones are read in.

    In the other order a plugin turns them when it loads the model and holds them twice.
    """
    ops = importlib.import_module("openvino.opset13")
    for dense in model.get_ordered_ops():
        if dense.get_type_name() != "MatMul" or dense.get_attributes()["transpose_b"]:
            continue
        weight = dense.input_value(1).get_node()
        if _is_stored(weight) and len(weight.get_output_shape(0)) == 2:
            layer = ops.matmul(dense.input_value(0), _turned(weight), False, True)
            layer.set_friendly_name(dense.get_friendly_name())
            layer.output(0).set_names(dense.output(0).get_names())
            dense.output(0).replace(layer.output(0))


def _is_stored(weight: Node) -> bool:
    """A constant, or one that is widened and scaled."""
    while weight.get_type_name() in ("Convert", "Multiply", "Subtract"):
        weight = weight.input_value(0).get_node()
    return bool(weight.get_type_name() == "Constant")


def _turned(weight: Node) -> Node:
    ops = importlib.import_module("openvino.opset13")
    kind = weight.get_type_name()
    if kind == "Constant":
        values = weight.get_data()
        if values.size == 1:
            return weight
        return ops.constant(np.array(np.atleast_2d(values).T, order="C"), shared_memory=True)
    parts = [_turned(value.get_node()) for value in weight.input_values()]
    if kind == "Convert":
        return ops.convert(*parts, weight.get_element_type().get_type_name())
    return {"Multiply": ops.multiply, "Subtract": ops.subtract}[kind](*parts)


def dense_layers(model: Model) -> list[tuple[Node, Constant]]:
    """Each MatMul with a weight, and the weight."""
    return [
        (node, weight)
        for node in model.get_ordered_ops()
        if node.get_type_name() == "MatMul"
        for weight in [node.input_value(1).get_node()]
        if weight.get_type_name() == "Constant"
    ]


__all__ = ["dense_layers", "outputs_first"]
