"""A float32 graph in float16 or bfloat16, strongly typed: no operator is given two float types.

Matrix products, attention and activations compute in half precision. What would lose there stays in
float32 between explicit Casts: normalisations, the residual stream that all blocks add to (it grows
past 65,504 in trained models), and the angles of rotary embeddings. Engines that are strongly typed
(TensorRT) run exactly what is written; others take the same file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnxscript import ir

from laco_export.declared import DTYPES, conform
from laco_export.model_file import save_model
from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import GraphSpec

HalfName = Literal["float16", "bfloat16"]

_NUMPY = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_NORM_PARTS = frozenset({"ReduceMean", "Sqrt", "Reciprocal", "Pow"})
"""Of which normalisations are made where they are not one operator."""
_SKIP_NORMS = frozenset({"SkipSimplifiedLayerNormalization"})
_ANGLES = frozenset({"Cos", "Sin"})
_MOVES = frozenset(
    {
        *("Reshape", "Transpose", "Slice", "Concat", "Pad", "Split", "Expand", "Gather"),
        *("Squeeze", "Unsqueeze", "Identity", "Flatten"),
    }
)
"""Operators that move values and compute nothing: they keep the type that they are given."""
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_MIXED = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
"""Operators whose purpose is to go from one type to another."""


def to_half(
    source: Path,
    path: Path,
    dtype: HalfName,
    spec: GraphSpec,
    *,
    fp32_residual: bool = True,
    share: Path | None = None,
) -> Path:
    """Write a float32 graph anew in half precision.

    Args:
        source: a graph that `write_graph` wrote.
        path: of the `.onnx` file; weights go to `<name>.data` beside it.
        dtype: what to compute in.
        spec: inputs and outputs of the new graph: those of the old one, but for the type of the
            KV cache, which is what `spec` says.
        fp32_residual: keep the residual stream in float32.
        share: a graph in the folder of `path` whose weights file this one is to use as well.

    Returns:
        `path`.

    Raises:
        ExportError: a weight is out of the range of float16, or the graph is not as `spec` says.
    """
    model = ir.load(source)
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    _Halves(model.graph, dtype, fp32_residual).rewrite(spec)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    conform(spec, model.graph)
    save_model(model, path, share=share)
    check_strong_types(path)
    return path


class _Halves:
    """The rewriting of one graph, with the casts and weights made so far."""

    def __init__(self, graph: ir.Graph, dtype: HalfName, fp32_residual: bool) -> None:
        self.graph, self.name, self.half = graph, dtype, DTYPES[dtype]
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.islands = _islands(graph, fp32_residual)

    def rewrite(self, spec: GraphSpec) -> None:
        declared = {one.name: DTYPES[one.dtype] for one in (*spec.inputs, *spec.outputs)}
        for value in self.graph.inputs:
            if value.dtype in _FLOATS:
                value.dtype = declared.get(str(value.name), value.dtype)
        for node in list(self.graph):
            self._retype(node)
        for index, value in enumerate(self.graph.outputs):
            wanted = declared.get(str(value.name), value.dtype)
            if value.dtype in _FLOATS and wanted != value.dtype and wanted is not None:
                name, value.name = value.name, f"{value.name}.{self.name}"
                result = self._cast(value, wanted)
                result.name, self.graph.outputs[index] = name, result

    def _retype(self, node: ir.Node) -> None:
        if node.op_type == "Cast":  # from numbers of another kind: places, masks
            return
        dtype = self._type_of(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in _FLOATS and value.dtype != dtype:
                node.replace_input_with(index, self._as(value, dtype, node))
        for value in node.outputs:
            if value.dtype in _FLOATS:
                value.dtype = dtype

    def _type_of(self, node: ir.Node) -> ir.DataType:
        """What a node computes in."""
        if node in self.islands:
            return ir.DataType.FLOAT
        if node.op_type == "TensorScatter":  # the cache is written in place: it keeps its type
            return node.inputs[0].dtype or self.half  # type: ignore[union-attr]
        if node.op_type in _MOVES:
            given = {
                value.dtype
                for value in node.inputs
                if value is not None and value.dtype in _FLOATS and not _is_constant(value)
            }
            if given:  # the wider, where parts of several types are joined
                return ir.DataType.FLOAT if ir.DataType.FLOAT in given else self.half
        return self.half

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        """The value in another type: a weight anew, anything else through a Cast."""
        key = value, dtype
        if key not in self.made:
            constant = _is_constant(value)
            self.made[key] = self._weight(value) if constant else self._cast(value, dtype, reader)
        return self.made[key]

    def _weight(self, value: ir.Value) -> ir.Value:
        tensor = value.const_value
        if tensor is None or value.name is None:
            raise ExportError("a weight of the graph has no values. Export it again.")
        name, shape = f"{value.name}.{self.name}", ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(_Rounded(value.name, tensor, self.name), self.half, shape, name=name)
        weight = ir.Value(name=name, const_value=lazy, type=ir.TensorType(self.half), shape=shape)
        self.graph.register_initializer(weight)
        return weight

    def _cast(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node | None = None) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": ir.AttrInt64("to", dtype.value)})
        node.name = f"cast_{value.name}_{dtype.name.lower()}"
        result = node.outputs[0]
        result.name, result.shape = f"{value.name}.{dtype.name.lower()}", value.shape
        result.type = ir.TensorType(dtype)
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        elif reader is not None:
            self.graph.insert_before(reader, node)
        else:  # an input that is an output
            self.graph.append(node)
        return result


class _Rounded:
    """A weight in half precision, made when it is called.

    A number that stands alone and is out of range is what a masked score gets: it is drawn in to
    half the range, where a score can be added to it.
    """

    def __init__(self, name: str, tensor: ir.TensorProtocol, dtype: HalfName) -> None:
        self.name, self.tensor, self.dtype = name, tensor, dtype

    def __call__(self) -> ir.TensorProtocol:
        values = np.asarray(self.tensor.numpy())
        if values.size == 1 and self.dtype == "float16":
            limit = float(np.finfo(np.float16).max)
            if abs(values).item() > limit:
                values = np.sign(values) * np.float32(limit / 2)
        with np.errstate(over="ignore"):
            rounded = values.astype(_NUMPY[self.dtype])
        lost = np.isfinite(values) & ~np.isfinite(rounded.astype(np.float32))
        if lost.any():
            raise ExportError(
                f"weight {self.name!r} holds {float(values[lost][0]):.6g}, which is out of the "
                f"range of {self.dtype}. Export with bf16, which has the range of float32."
            )
        return ir.tensor(rounded)


def _islands(graph: ir.Graph, fp32_residual: bool) -> set[ir.Node]:
    """Nodes that compute in float32."""
    islands: set[ir.Node] = set()
    for node in graph:
        if node.op_type in _NORMS | _NORM_PARTS or _joins_norm(node):
            islands.add(node)
        elif node.op_type in _ANGLES:
            islands |= {node, *_float_ancestors(node)}
        elif fp32_residual and (node.op_type in _SKIP_NORMS or _adds_to_residual(node)):
            islands.add(node)
    return islands


def _joins_norm(node: ir.Node) -> bool:
    """x * x, mean + epsilon, x / root: what stands between the parts of a normalisation."""
    if node.op_type not in _ARITHMETIC:
        return False
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return True
    makers = [value.producer() for value in node.inputs if value is not None]
    return any(maker is not None and maker.op_type in _NORM_PARTS for maker in makers)


def _adds_to_residual(node: ir.Node) -> bool:
    """Whether a node adds two computed tensors of tokens, [B, N, C]."""
    shape = node.outputs[0].shape
    return (
        node.op_type == "Add"
        and shape is not None
        and len(shape) == 3
        and not any(value is None or _is_constant(value) for value in node.inputs)
    )


def _float_ancestors(node: ir.Node) -> Iterable[ir.Node]:
    for value in node.inputs:
        maker = value.producer() if value is not None and value.dtype in _FLOATS else None
        if maker is not None:
            yield maker
            yield from _float_ancestors(maker)


def _is_constant(value: ir.Value) -> bool:
    return value.producer() is None and value.const_value is not None


def check_strong_types(path: Path) -> None:
    """Refuse a graph in which an operator is given floats of two types.

    TensorRT refuses such a graph as well, with less of a reason.

    Raises:
        ExportError: names the operator and the types of its inputs.
    """
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    for node in ir.from_proto(inferred).graph:
        found = {
            str(value.name): value.dtype
            for value in node.inputs
            if value is not None and value.dtype in _FLOATS
        }
        if len(set(found.values())) > 1 and node.op_type not in _MIXED:
            types = ", ".join(f"{name} is {dtype}" for name, dtype in found.items())
            raise ExportError(
                f"{node.op_type} {node.name!r} of {path.name} mixes types: {types}. "
                "Cast all of its inputs to one type."
            )
        for value in node.outputs:  # of operators that ONNX does not know
            if value.name and value.dtype is None and found:
                value.dtype = next(iter(found.values()))


__all__ = ["HalfName", "check_strong_types", "to_half"]
