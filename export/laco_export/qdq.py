"""Quantisation by QuantizeLinear and DequantizeLinear, as strongly typed engines want it.

Every product with a constant matrix gets its matrix in fewer bits behind a DequantizeLinear; with
activations, also a QuantizeLinear and DequantizeLinear before it. Symmetric throughout: TensorRT
takes no other zero point than 0. What ONNX says is what any engine computes, so the same file shows
its numerics on ONNX Runtime. Written on the float32 graph; `laco_export.half` comes after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

from laco_export.half import HalfName
from laco_export.model_file import save_model
from laco_runtimes.errors import ExportError

Floats = NDArray[np.float32]

SCALES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-126}
"""Scale of a column of zeros: the least number above 0 that is exact in the type."""

LEAST_GROUPS = 4
"""Of a column: a narrow matrix has smaller groups."""

FP8_LARGEST = 448.0
"""Of float8 E4M3."""

Scales = Mapping[str, float]
"""Scale of the activations of a product, by the name of its weight."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one matrix [K, N] is rounded."""

    dtype: ir.DataType
    largest: float
    """Largest code."""
    opset: int
    """First version of ai.onnx with it."""
    blocks: tuple[int, ...] = ()
    """Sizes of groups along K that share a scale, the first that divides K is taken; with none,
    one scale per column."""
    codes: type[np.generic] = np.int8

    def block(self, rows: int) -> int | None:
        """Size of the groups for a matrix of that many rows, or None."""
        fitting = (
            size for size in self.blocks if rows % size == 0 and rows // size >= LEAST_GROUPS
        )
        return next(fitting, None)

    def round(self, values: NDArray[Any]) -> NDArray[Any]:
        """To codes, in numbers of the scale."""
        whole = values if self.dtype == ir.DataType.FLOAT8E4M3FN else np.rint(values)
        codes: NDArray[Any] = np.clip(whole, -self.largest, self.largest).astype(self.codes)
        return codes


INT8 = Scheme(ir.DataType.INT8, 127, 19)
"""One scale per output channel."""
INT4 = Scheme(ir.DataType.INT4, 7, 21, blocks=(128, 64, 32, 16), codes=ml_dtypes.int4)
"""One scale per group of a column."""
FP8 = Scheme(ir.DataType.FLOAT8E4M3FN, FP8_LARGEST, 19, codes=ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a constant matrix."""

    node: ir.Node
    source: ir.Value
    weight: ir.Value

    @property
    def name(self) -> str:
        """Of its weight."""
        return str(self.weight.name)


def quantize(
    source: Path,
    path: Path,
    weights: Scheme,
    half: HalfName,
    *,
    head: Scheme | None = None,
    activations: Scales | None = None,
) -> int:
    """Write a float32 graph anew with quantised products.

    Args:
        source: a graph that `write_graph` wrote.
        path: of the `.onnx` file; its weights go to `<name>.data`.
        weights: of every matrix.
        half: type of the scales in the end: they are rounded to it before the weights are, so that
            nothing changes when the graph is cast.
        head: of the product that makes `logits`, if it differs.
        activations: scales from `calibrate`; None leaves activations as they are.

    Returns:
        How many products were quantised.

    Raises:
        ExportError: there are none, an operator set is too old, or a scale is not known.
    """
    model = ir.load(source)
    found = list(products(model.graph))
    if not found:
        raise ExportError(
            f"{source.name} has no product with a constant matrix, so there is nothing to "
            "quantise. Choose fp16 or bf16."
        )
    _check_opset(model, weights)
    cast = _Rounding(model.graph, half)
    for one in found:
        scheme = head if head is not None and _is_head(one.node) else weights
        if scheme.blocks and scheme.block(int(one.weight.shape[0])) is None:  # type: ignore[index, arg-type]
            scheme = INT8
        one.node.replace_input_with(1, cast.weight(one, scheme))
        if activations is not None:
            one.node.replace_input_with(0, cast.activation(one, scheme, activations))
    ir.passes.common.RemoveUnusedNodesPass()(model)
    save_model(model, path)
    return len(found)


def quantize_table(source: Path, path: Path, half: HalfName) -> None:
    """Write a look-up in a table with the table in int8, one scale per row.

    Raises:
        ExportError: the graph is no such look-up.
    """
    model = ir.load(source)
    tables = [node for node in model.graph if node.op_type == "Gather"]
    if len(tables) != 1 or tables[0].inputs[0] is None or not _is_weight(tables[0].inputs[0]):
        raise ExportError(
            f"{source.name} is not a look-up in one constant table. Choose fp16 or bf16."
        )
    table = tables[0].inputs[0]
    one = Product(tables[0], table, table)
    tables[0].replace_input_with(0, _Rounding(model.graph, half).weight(one, INT8, axis=0))
    ir.passes.common.RemoveUnusedNodesPass()(model)
    save_model(model, path)


def products(graph: ir.Graph) -> Iterator[Product]:
    """Products of an activation with a constant matrix [K, N], in their order.

    Without those that make a smaller image of the pixels: they are no layers, and what they round
    all patches would have in common.
    """
    pixels = {value for value in graph.inputs if value.name == "pixel_values"}
    for node in graph:
        if node.op_type in ("MatMul", "Transpose") and node.inputs[0] in pixels:
            pixels.update(node.outputs)
            continue
        if node.op_type != "MatMul":
            continue
        left, right = node.inputs
        if left is not None and right is not None and _is_weight(right) and not _is_weight(left):
            yield Product(node, left, right)


class _Rounding:
    """Codes and scales that were put into one graph."""

    def __init__(self, graph: ir.Graph, half: HalfName) -> None:
        self._graph, self._half = graph, half
        self._made: dict[tuple[ir.Value, str], ir.Value] = {}

    def weight(self, one: Product, scheme: Scheme, axis: int = 1) -> ir.Value:
        """The matrix again, from its codes."""
        key = one.weight, scheme.dtype.name
        if key in self._made:
            return self._made[key]
        tensor = one.weight.const_value
        if tensor is None:
            raise ExportError(f"weight {one.name!r} has no values. Export it again.")
        values = np.asarray(tensor.numpy(), np.float32)
        block = scheme.block(values.shape[0])
        scales = self._fit(values, scheme, block, axis)
        codes = ir.LazyTensor(
            _Codes(tensor, scheme, scales, block, axis),
            scheme.dtype,
            ir.Shape(values.shape),
            name=f"{one.name}.{scheme.dtype.name.lower()}",
        )
        attributes: dict[str, int] = {"axis": axis}
        if block is not None:
            attributes = {"axis": 0, "block_size": block}
        self._made[key] = self._dequantized(
            self._constant(str(codes.name), codes),
            self._constant(f"{codes.name}.scale", ir.tensor(scales)),
            None,
            one,
            attributes,
        )
        return self._made[key]

    def activation(self, one: Product, scheme: Scheme, scales: Scales) -> ir.Value:
        """The activation again, from its codes."""
        if one.name not in scales:
            raise ExportError(
                f"no range was found for the input of {one.name!r}. Give calibration images."
            )
        if (one.source, "codes") in self._made:  # query, key and value read the same
            return self._made[one.source, "codes"]
        rounded = np.asarray(scales[one.name], SCALES[self._half]).astype(np.float32)
        scale = self._constant(f"{one.name}.input_scale", ir.tensor(rounded))
        zero = self._constant(
            f"{one.name}.input_zero", ir.tensor(np.zeros((), scheme.codes), dtype=scheme.dtype)
        )
        node = ir.node("QuantizeLinear", [one.source, scale, zero])
        node.outputs[0].name = f"{one.name}.input_codes"
        node.outputs[0].type, node.outputs[0].shape = (
            ir.TensorType(scheme.dtype),
            one.source.shape,
        )
        self._graph.insert_before(one.node, node)
        result = self._dequantized(node.outputs[0], scale, zero, one, {})
        self._made[one.source, "codes"] = result
        return result

    def _fit(self, values: Floats, scheme: Scheme, block: int | None, axis: int) -> Floats:
        """Scales as they will be in the end, but in float32."""
        if block is None:
            spread = np.abs(values).max(axis=1 - axis)  # [N], or [V] of a table
        else:
            spread = np.abs(values.reshape(-1, block, values.shape[1])).max(axis=1)  # [K / b, N]
        scales = np.maximum(spread / scheme.largest, SMALLEST[self._half])
        return np.asarray(scales.astype(SCALES[self._half]), np.float32)

    def _constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype))
        value.shape = ir.Shape(tensor.shape.numpy())
        self._graph.register_initializer(value)
        return value

    def _dequantized(
        self,
        codes: ir.Value,
        scale: ir.Value,
        zero: ir.Value | None,
        one: Product,
        attributes: Mapping[str, int],
    ) -> ir.Value:
        inputs = [codes, scale] if zero is None else [codes, scale, zero]
        node = ir.node("DequantizeLinear", inputs, attributes=dict(attributes))
        result = node.outputs[0]
        result.name = f"{codes.name}.floats"
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), codes.shape
        self._graph.insert_before(one.node, node)
        return result


@dataclass(frozen=True, slots=True)
class _Codes:
    """Codes of one matrix, made when they are written: never all matrices at once."""

    tensor: ir.TensorProtocol
    scheme: Scheme
    scales: Floats
    block: int | None
    axis: int

    def __call__(self) -> ir.TensorProtocol:
        values: NDArray[Any] = np.asarray(self.tensor.numpy(), np.float32)
        if self.block is None:
            values = values / np.expand_dims(self.scales, 1 - self.axis)
        else:
            groups = values.reshape(-1, self.block, values.shape[1])
            values = (groups / self.scales[:, None]).reshape(values.shape)
        return ir.tensor(self.scheme.round(values), dtype=self.scheme.dtype)


def calibrate(source: Path, images: Path, scheme: Scheme) -> dict[str, float]:
    """Scales of what goes into each product, from running the float32 graph on images.

    For integers the range is cut where the mean squared error of rounding is least: a few large
    activations, which trained transformers have, would leave too few codes to the others. Float8
    has its own exponent, so there the range is whole.

    Args:
        source: the float32 graph of the encoder.
        images: `.npy` file of [images, 3, S, S] float32, read image by image.
        scheme: what activations are rounded to.

    Raises:
        ExportError: the file is not of that shape, or holds no image.
    """
    import onnxruntime

    pixels = np.load(images, mmap_mode="r", allow_pickle=False)
    if pixels.ndim != 4 or not len(pixels):
        raise ExportError(
            f"'{images.name}' holds {pixels.shape} and not images. Give at least one image."
        )
    model = ir.load(source)
    watched: dict[str, list[str]] = {}
    for one in products(model.graph):
        watched.setdefault(str(one.source.name), []).append(one.name)
        if one.source not in model.graph.outputs:
            model.graph.outputs.append(one.source)
    probe = source.with_name(f".{source.stem}.calibrate.onnx")
    try:
        ir.save(model, probe)  # refers to the weights of the source
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(probe, options, providers=["CPUExecutionProvider"])
        spreads = {name: _Spread() for name in watched}
        for image in pixels:
            found = session.run(list(watched), {session.get_inputs()[0].name: image[None]})
            for spread, values in zip(spreads.values(), found, strict=True):
                spread.add(values)
    finally:
        probe.unlink(missing_ok=True)
    return {
        weight: spread.scale(scheme)
        for spread, weights in zip(spreads.values(), watched.values(), strict=True)
        for weight in weights
    }


class _Spread:
    """How large values are: a histogram with bins of equal ratio, so that no range need be known.

    Of a large tensor evenly spaced values are counted; the largest is always exact.
    """

    _LOWEST, _HIGHEST, _PER_OCTAVE = -24, 24, 16
    _COUNTED = 2**18

    def __init__(self) -> None:
        bins = (self._HIGHEST - self._LOWEST) * self._PER_OCTAVE
        self._counts = np.zeros(bins)
        self._largest = 0.0

    def add(self, values: Floats) -> None:
        """Count the values of one image."""
        sizes = np.abs(values.reshape(-1))
        self._largest = max(self._largest, float(sizes.max()))
        # An odd step, so that it does not fall on the same channels again and again.
        some = sizes[:: max(1, sizes.size // self._COUNTED) | 1]
        places = (np.log2(np.maximum(some, 2.0**self._LOWEST)) - self._LOWEST) * self._PER_OCTAVE
        self._counts += np.bincount(
            np.minimum(places.astype(int), self._counts.size - 1), minlength=self._counts.size
        )

    def scale(self, scheme: Scheme) -> float:
        """The scale with the least expected error."""
        if not self._largest:
            return 1.0
        if scheme.dtype == ir.DataType.FLOAT8E4M3FN:
            return self._largest / scheme.largest
        limits = self._largest * np.linspace(0.05, 1.0, 96)
        errors = [self._error(limit, limit / scheme.largest) for limit in limits]
        return float(limits[int(np.argmin(errors))] / scheme.largest)

    def _error(self, limit: float, step: float) -> float:
        middles = 2.0 ** (self._LOWEST + (np.arange(self._counts.size) + 0.5) / self._PER_OCTAVE)
        # Evenly within a step for what is rounded; all of the excess for what is cut.
        rounded = np.where(middles < step / 2, middles**2, step**2 / 12)
        cut = np.maximum(middles - limit, 0.0) ** 2
        return float((self._counts * np.where(middles > limit, cut, rounded)).sum())


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        value.producer() is None
        and tensor is not None
        and len(tensor.shape) == 2
        and tensor.dtype == ir.DataType.FLOAT
    )


def _is_head(node: ir.Node) -> bool:
    return any(value.name == "logits" for value in node.outputs)


def _check_opset(model: ir.Model, scheme: Scheme) -> None:
    version = model.opset_imports[""]
    if version >= scheme.opset:
        return
    if scheme.opset > MAX_RAISED:
        raise ExportError(
            f"{scheme.dtype.name.lower()} needs operator set {scheme.opset}, and this graph is "
            f"written in {version} for engines that know no newer one. Choose int8, fp16 or bf16."
        )
    # 19 changed nothing in the operators of a decoder but added types.
    model.opset_imports[""] = scheme.opset
    model.graph.opset_imports[""] = scheme.opset


MAX_RAISED = 19
"""Newest operator set that an older graph is raised to: TensorRT 10.3 reads up to 20."""

__all__ = [
    "FP8",
    "INT4",
    "INT8",
    "Product",
    "Scales",
    "Scheme",
    "calibrate",
    "products",
    "quantize",
    "quantize_table",
]
