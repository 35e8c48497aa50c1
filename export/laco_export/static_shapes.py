"""Graphs whose every shape is known beforehand, but for how many tiles there are.

The tracer computes some shapes from others while the graph runs, which keeps engines from planning
memory and fusing. Here such nodes are written anew, and what is still left of them is refused.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import pattern

from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import GraphSpec

ENCODER_OPS = frozenset(
    {
        *("Conv", "MatMul", "Attention", "Reshape", "Transpose", "Slice", "Concat", "Pad"),
        *("LayerNormalization", "RMSNormalization", "ReduceMean", "Softmax"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal"),
        *("Gelu", "Erf", "Sigmoid", "Tanh"),
    }
)
"""All that a vision encoder may consist of. No Shape, Expand, Gather, If, Loop, Scatter, Resize or
other operator whose shapes an engine would learn only while it runs. Slice and Concat fit odd grids
to the windows of a merger and lead CLS past it; Pad makes room for CLS."""


def set_static_reshapes(graph: ir.Graph) -> None:
    """Give each Reshape a constant shape if one will do: 0 copies a dimension, -1 is the rest."""
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[1] is None:
            continue
        before, after = node.inputs[0], node.outputs[0]
        if node.inputs[1].const_value is not None or not (before and before.shape and after.shape):
            continue
        sizes = [
            size
            if isinstance(size, int)
            else (0 if axis < len(before.shape) and before.shape[axis] == size else -1)
            for axis, size in enumerate(after.shape)
        ]
        if sizes.count(-1) > 1 or 0 in [size for size in after.shape if isinstance(size, int)]:
            continue
        shape = ir.Value(
            name=f"{after.name}_shape", const_value=ir.tensor(np.array(sizes, np.int64))
        )
        graph.register_initializer(shape)
        node.replace_input_with(1, shape)
        node.attributes.pop("allowzero", None)


def pad_for_constant_tokens(model: ir.Model) -> None:
    """Put constant tokens (CLS) before the others by adding them to rows of zeros.

    torch repeats them for every tile instead, to a shape that only the running graph knows. The
    numbers are the same bit for bit.
    """
    pattern.RewriteRuleSet([_PadForConstantTokens.rule()]).apply_to_model(model)


class _PadForConstantTokens(pattern.RewriteRuleClassBase):
    def pattern(self, op: Any, tokens: Any, shape: Any, others: Any) -> Any:
        return op.Concat(op.Expand(tokens, shape), others, axis=1, _outputs=["joined"])

    def check(  # type: ignore[override]  # by its contract it takes the pattern's names
        self, context: Any, tokens: ir.Value, others: ir.Value, joined: ir.Value, **_: Any
    ) -> bool:
        if tokens.const_value is None or others.shape is None or joined.shape is None:
            return False
        sizes = [*tokens.const_value.shape, *others.shape[1:], *joined.shape[1:]]
        match sizes:  # [1, P, C] before [tiles, N, C]
            case [1, int(count), int(width), int(rest), int(_), int(total), int(wide)]:
                return total == count + rest and wide == width
        return False

    def rewrite(self, op: Any, tokens: Any, others: Any, joined: Any, **_: Any) -> Any:
        first = tokens.const_value.numpy()  # [1, P, C]
        rows = np.zeros((1, *joined.shape[1:]), first.dtype)  # [1, P + N, C]
        rows[:, : first.shape[1]] = first
        # For each axis how many zeros go before, then for each axis how many go behind.
        pads = np.array([0, first.shape[1], 0, 0, 0, 0], np.int64)
        padded = op.Pad(others, op.initializer(ir.tensor(pads), name=f"{joined.name}_pads"))
        padded.dtype, padded.shape = joined.dtype, joined.shape
        return op.Add(padded, op.initializer(ir.tensor(rows), name=f"{joined.name}_tokens"))


def check_operators(spec: GraphSpec, graph: ir.Graph, allowed_ops: frozenset[str]) -> None:
    """Refuse operators that are not allowed.

    Raises:
        ExportError: there are some.
    """
    if extra := sorted({node.op_type for node in graph} - allowed_ops):
        raise _refusal(spec, f"operator {', '.join(extra)}")


def check_static(spec: GraphSpec, graph: ir.Graph) -> None:
    """Refuse shapes that an engine could plan for only while it runs.

    Raises:
        ExportError: a place or size that is computed; a dynamic dimension, unless it is the first
            and the declared one or a multiple of it.
    """
    names = {dim for one in spec.inputs for dim in one.dims if isinstance(dim, str)}
    dynamic = re.compile(rf"(\d+\*)?({'|'.join(map(re.escape, sorted(names)))})")
    for node in graph:
        for value in node.inputs:
            if value and value.const_value is None and value.dtype != ir.DataType.FLOAT:
                raise _refusal(spec, f"{node.op_type} with a computed {value.dtype} operand")
        for value in node.outputs:
            sizes: list[Any] = [None] if value.shape is None else list(value.shape)
            if sizes and isinstance(sizes[0], ir.SymbolicDim):
                sizes[0] = 0 if dynamic.fullmatch(str(sizes[0].value)) else None
            if not all(isinstance(size, int) for size in sizes):
                raise _refusal(spec, f"{node.op_type} to shape {value.shape}")


def _refusal(spec: GraphSpec, what: str) -> ExportError:
    return ExportError(
        f"the {spec.name} graph needs {what}, which is kept out of it for the engines' sake. "
        "Build the model of static reshapes and dense layers only."
    )


__all__ = [
    "ENCODER_OPS",
    "check_operators",
    "check_static",
    "pad_for_constant_tokens",
    "set_static_reshapes",
]
