"""Matrices in 8 or 4 bits for ONNX Runtime: `MatMulNBits`, and a table of embeddings in int8.

One matrix is in memory at a time: those of the source stay in its data file, which is mapped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

BLOCK = 32
"""Weights that share a scale, along the input of a matrix. The only size that onnxruntime-gpu has
fast kernels for since 1.30 (release notes), and the best one on a CPU."""

FASTEST_LEVEL, EXACT_LEVEL = 4, 1
"""`accuracy_level` of MatMulNBits: products of int8, or of fp32."""

LEVEL_KEY = "laco.accuracy_level"
"""Key of the chosen accuracy level in the metadata of a graph."""

HEAD_BITS = 8
"""The head decides between neighbours of the vocabulary, so it never has fewer."""


def write_nbits(source: Path, out: Path, *, bits: int, level: int) -> None:
    """Replace every product with a constant matrix by `MatMulNBits`; a bias behind it is taken in.

    Rounding to nearest with one scale per `BLOCK` weights, symmetric, by ONNX Runtime's own code.

    Args:
        source: a graph in fp32.
        out: where to write; its weights go to `<out>_data`.
        bits: 8 or 4. What makes the output `logits` has `HEAD_BITS`.
        level: accuracy level of products with 4 bits: 4 rounds activations to int8, block by
            block; 1 leaves them in fp32. Those with 8 bits are always at 4: without AVX-512 there
            is no other kernel for them, and what runs then is hundreds of times slower.
    """
    model = ir.load(source)
    for node in list(model.graph):
        if (weight := _matrix(node)) is not None:
            head = "logits" in {value.name for value in node.outputs}
            width = HEAD_BITS if head else bits
            _replace(model.graph, node, weight, width, level if width == 4 else FASTEST_LEVEL)
    model.opset_imports.setdefault("com.microsoft", 1)
    model.metadata_props[LEVEL_KEY] = str(level)
    _save(model, out)


def write_channels(source: Path, out: Path) -> None:
    """Put every constant matrix behind `DequantizeLinear`: int8, one scale per output channel.

    Activations and products stay in fp32. For encoders: a pass over many tokens hides the time
    that it takes to widen the weights.
    """
    model = ir.load(source)
    graph = model.graph
    for node in list(graph):
        weight = _matrix(node)
        if weight is None or weight.const_value is None:
            continue
        matrix = weight.const_value.numpy()  # [K, N]
        scales = _scales(matrix, axis=0)  # [1, N]
        name = weight.name or "weight"
        wide = ir.node(
            "DequantizeLinear",
            [
                _constant(graph, f"{name}_int8", np.rint(matrix / scales).astype(np.int8)),
                _constant(graph, f"{name}_scales", scales[0]),
            ],
            {"axis": 1},
        )
        graph.insert_before(node, wide)
        node.replace_input_with(1, wide.outputs[0])
        _drop_unused(graph, weight)
    _save(model, out)


def copy_graph(source: Path, out: Path) -> None:
    """Write a graph anew with all its weights beside it; they are read from a mapped file."""
    _save(ir.load(source), out)


def set_level(path: Path, level: int) -> None:
    """Change the accuracy level of a graph that `write_nbits` wrote; its data stays as it is."""
    model = ir.load(path)
    for node in model.graph:
        if node.op_type == "MatMulNBits" and node.attributes["bits"].as_int() == 4:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
    model.metadata_props[LEVEL_KEY] = str(level)
    ir.save(model, path)


def write_int8_table(source: Path, out: Path) -> None:
    """A look-up in a table of int8 with one scale per row: [V, D] int8 and [V, 1] float32.

    In plain operators, so that every device and every ONNX runtime has it.
    """
    model = ir.load(source)
    [gather] = [node for node in model.graph if node.op_type == "Gather"]
    table, ids = gather.inputs[0], gather.inputs[1]
    if table is None or ids is None or table.const_value is None:
        raise ValueError("the graph of embeddings is no look-up in a constant table")
    rows = table.const_value.numpy()
    scales = _scales(rows, axis=1)
    whole = np.rint(rows / scales).astype(np.int8)
    graph, name = model.graph, table.name or "table"
    picked = ir.node("Gather", [_constant(graph, f"{name}_int8", whole), ids], {"axis": 0})
    wide = ir.node("Cast", [picked.outputs[0]], {"to": ir.DataType.FLOAT})
    scale = ir.node("Gather", [_constant(graph, f"{name}_scales", scales), ids], {"axis": 0})
    product = ir.node("Mul", [wide.outputs[0], scale.outputs[0]])
    graph.insert_before(gather, [picked, wide, scale, product])
    _hand_over(graph, gather, product)
    _drop_unused(graph, table)
    _save(model, out)


def _matrix(node: ir.Node) -> ir.Value | None:
    """The constant [K, N] that a node multiplies by."""
    if node.op_type != "MatMul" or node.domain:
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or not weight.is_initializer():
        return None
    return weight if len(weight.const_value.shape) == 2 else None


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value, bits: int, level: int) -> None:
    if weight.const_value is None:
        return
    matrix = np.ascontiguousarray(weight.const_value.numpy(), np.float32)  # [K, N]
    packed, scales = _quantised(matrix, bits)
    name = weight.name or node.name or "weight"
    last, bias = node, None
    readers = list(node.outputs[0].uses())
    if len(readers) == 1 and readers[0].node.op_type == "Add" and not _is_output(node):
        add = readers[0].node
        other = add.inputs[1 - readers[0].idx]
        if other is not None and other.is_initializer() and other.shape == (matrix.shape[1],):
            last, bias = add, other
    inputs: list[ir.Value | None] = [
        node.inputs[0],
        _constant(graph, f"{name}_{bits}bits", packed),
        _constant(graph, f"{name}_{bits}bits_scales", scales),
    ]
    if bias is not None:
        inputs += [None, None, bias]
    product = ir.node(
        "MatMulNBits",
        inputs,
        {
            "K": matrix.shape[0],
            "N": matrix.shape[1],
            "bits": bits,
            "block_size": BLOCK,
            "accuracy_level": level,
        },
        domain="com.microsoft",
        version=1,
        name=node.name,
    )
    graph.insert_before(last, product)
    _hand_over(graph, last, product)
    if last is not node:
        graph.remove(node, safe=True)
    _drop_unused(graph, weight)


def _quantised(matrix: NDArray[np.float32], bits: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """[K, N] to [N, K / BLOCK, bytes of a block] and scales [N, K / BLOCK]."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(matrix)
    return packed, scales


def _scales(matrix: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """So that the largest value along `axis` becomes 127."""
    largest = np.abs(matrix).max(axis=axis, keepdims=True)
    scales: NDArray[np.float32] = np.maximum(largest / 127, np.finfo(np.float32).tiny)
    return scales


def _constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """An initialiser of that name, made once: two products may share a matrix."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _is_output(node: ir.Node) -> bool:
    return any(value.is_graph_output() for value in node.outputs)


def _hand_over(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Let `new` make what `old` made, under the same name, and drop `old`."""
    before, after = old.outputs[0], new.outputs[0]
    after.shape, after.type, name = before.shape, before.type, before.name
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    after.name = name


def _drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    if not value.uses() and value.name is not None:
        graph.initializers.pop(value.name, None)


def _save(model: ir.Model, out: Path) -> None:
    """Weights go to `<name>.onnx_data`, where transformers.js looks for them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, out, external_data=f"{out.name}_data")


__all__ = [
    "BLOCK",
    "EXACT_LEVEL",
    "FASTEST_LEVEL",
    "LEVEL_KEY",
    "copy_graph",
    "set_level",
    "write_channels",
    "write_int8_table",
    "write_nbits",
]
