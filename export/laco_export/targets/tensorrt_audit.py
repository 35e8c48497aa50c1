"""What the ONNX parsers of TensorRT take, as data: the same verdict with or without the package.

From the operator table of onnx-tensorrt for 10.15 and 11.2 (docs/operators.md there), and from what
the parser of TensorRT-RTX 1.7 was seen to do; a test holds the table against that parser. For
TensorRT 10.3 (JetPack 6) only the flavour `concat` stays within the table of its time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnxscript import ir

from laco_export.operators import refuse_unsupported
from laco_runtimes.errors import ExportError

_PLAIN = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Abs", "Neg", "Exp", "Log"),
        *("MatMul", "Gemm", "Conv", "Softmax", "ReduceMean", "ReduceSum", "ReduceMax", "Cast"),
        *("Reshape", "Transpose", "Slice", "Concat", "Split", "Pad", "Expand", "Tile", "Gather"),
        *("Squeeze", "Unsqueeze", "Identity", "Shape", "Range", "Where", "Equal", "Less"),
        *("Greater", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Not", "Min", "Max", "Clip"),
        *("Sigmoid", "Tanh", "Erf", "Relu", "Gelu", "Sin", "Cos", "ArgMax", "TopK", "ScatterND"),
        *("GatherElements", "ScatterElements", "LayerNormalization", "ConstantOfShape"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)
_NEW = frozenset({"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"})

OPERATORS = _PLAIN | _NEW
"""Of TensorRT from 10.15 on and of TensorRT-RTX, among those a graph of ours could hold."""

OLD_OPERATORS = _PLAIN
"""Of TensorRT 10.3."""

NEWEST_OPSET, OLD_OPSET = 24, 20
"""Of ai.onnx, for the two."""

MAX_K = 3839
"""Largest k of TopK."""


def check_graph(path: Path, *, old: bool = False) -> None:
    """Refuse what the parser would refuse, or would take and compute otherwise.

    Args:
        path: of the `.onnx` file.
        old: hold it against TensorRT 10.3.

    Raises:
        ExportError: names the node, and what to do.
    """
    who = "TensorRT 10.3" if old else "TensorRT"
    refuse_unsupported(
        path,
        OLD_OPERATORS if old else OPERATORS,
        who,
        "Export for onnxruntime or openvino"
        + ("" if old else ", or with another merger or decoder flavour"),
    )
    model = ir.load(path)
    limit = OLD_OPSET if old else NEWEST_OPSET
    if (version := model.opset_imports.get("", 0)) > limit:
        raise ExportError(
            f"{path.name} is written in operator set {version}, and {who} reads up to {limit}. "
            "Choose another decoder flavour or precision."
        )
    for node in model.graph:
        check = _RULES.get(node.op_type)
        if check is not None and (trouble := check(node)) is not None:
            raise ExportError(
                f"{who} does not take {node.op_type} of {path.name} as it stands (node "
                f"{node.name!r}): {trouble}. Export for onnxruntime or openvino."
            )
    _check_aliases(path, model.graph)


def _top_k(node: ir.Node) -> str | None:
    k = _constant(node, 1)
    if k is None or k > MAX_K:
        return f"k is {'computed' if k is None else k}, and it may be at most {MAX_K}"
    return None


def _scatter(node: ir.Node) -> str | None:
    kind = node.attributes.get_string("reduction", "none")
    return None if kind == "none" else f"it has reduction {kind!r}"


def _tensor_scatter(node: ir.Node) -> str | None:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if node.attributes.get_int("axis", -2) not in (-2, 2):
        return "it writes along another axis than -2"
    if shape is None or len(shape) != 4 or not isinstance(shape[2], int):
        return "its cache is not [batch, heads, capacity, width] with a fixed capacity"
    return None


def _attention(node: ir.Node) -> str | None:
    """Other inputs than a mask are dropped with a line in the log: "Unused Input"."""
    if len(node.inputs) > 4 and any(value is not None for value in node.inputs[4:]):
        return "it has a past, a present or the length of a padded cache, which would be ignored"
    if sum(bool(value.uses() or value.name) for value in node.outputs) > 1:
        return "it has more than one output"
    return "softcap is not known" if node.attributes.get_float("softcap", 0.0) else None


def _dequantize(node: ir.Node) -> str | None:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return None
    tensor = zero.const_value
    if tensor is None or tensor.numpy().astype("float32").any():
        return "its zero point is not 0"
    return None


_RULES: dict[str, Callable[[ir.Node], str | None]] = {
    "TopK": _top_k,
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "TensorScatter": _tensor_scatter,
    "Attention": _attention,
    "QuantizeLinear": _dequantize,
    "DequantizeLinear": _dequantize,
}
"""What is wrong with one node, by operator; None where nothing is."""


def _check_aliases(path: Path, graph: ir.Graph) -> None:
    """A cache that is written in place goes in and out of the graph, in one type and shape."""
    for node in graph:
        if node.op_type != "TensorScatter":
            continue
        before, after = node.inputs[0], node.outputs[0]
        inside = before not in graph.inputs or after not in graph.outputs
        if inside or before is None or before.dtype != after.dtype or before.shape != after.shape:
            raise ExportError(
                f"the cache that node {node.name!r} of {path.name} writes is not an input and an "
                "output of the graph of one type and shape, as TensorRT wants it to write in "
                "place. Report this as a defect."
            )


def _constant(node: ir.Node, index: int) -> int | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    return int(value.const_value.numpy().reshape(-1)[0])


__all__ = ["MAX_K", "NEWEST_OPSET", "OLD_OPERATORS", "OLD_OPSET", "OPERATORS", "check_graph"]
