"""One traced module to one ONNX file that keeps the promises of its `GraphSpec`."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxscript import ir, optimizer
from onnxscript.rewriter import onnx_fusions
from torch import Tensor, nn

from laco_export.block_copies import put_copies
from laco_export.blocks import repeats_left_out
from laco_export.declared import conform
from laco_export.model_file import save_model
from laco_export.static_shapes import (
    ENCODER_OPS,
    check_operators,
    check_static,
    pad_for_constant_tokens,
    set_static_reshapes,
)
from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import GraphSpec, TensorSpec

logger = logging.getLogger("laco")

OPSET = 23
"""First opset with `Attention`, `RMSNormalization` and `RotaryEmbedding`, which engines fuse."""

EXAMPLE_SIZES = {"tiles": 2, "batch": 2, "sequence": 5, "past": 3, "total": 8}
"""Sizes of the dynamic dimensions while tracing. Never 1, which torch takes for a constant."""

NO_LIMIT = 2**62


def write_graph(
    module: nn.Module,
    spec: GraphSpec,
    folder: Path,
    *,
    allowed_ops: frozenset[str] | None = None,
    opset: int = OPSET,
    stem: str | None = None,
    share: Path | None = None,
) -> Path:
    """Trace a module into `<stem>.onnx`; its weights go to `<stem>.onnx.data` beside it.

    The module's weights are neither changed nor copied as a whole.

    Args:
        module: takes the inputs of `spec` in order, as float32, and returns its outputs in order.
        spec: names, types and dimensions, which the trace is held against.
        folder: where to write; made if it is not there.
        allowed_ops: operators the graph may consist of; its shapes must then be static, but for
            the first dimension. None allows everything.
        opset: version of ai.onnx.
        stem: name of the file without its suffix; by default the name of `spec`.
        share: a graph in the same folder whose weights file this one is to use as well: no weight
            is stored twice.

    Returns:
        Path of the `.onnx` file.

    Raises:
        ExportError: the module cannot be traced, or what came out is not what `spec` says.
    """
    model = _trace(module, spec, opset)
    _transpose_when_written(model.graph)
    # torch folds small constants only; a position table of 1024 x 1024 is looked up at run time.
    optimizer.optimize(model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    onnx_fusions.fuse(model)  # RMSNormalization from its parts
    set_static_reshapes(model.graph)
    pad_for_constant_tokens(model)
    # The tracer notes its Python stack at every node, with the paths of the machine it ran on.
    passes = ir.passes.common
    for clean in (passes.RemoveUnusedNodesPass(), passes.ClearMetadataAndDocStringPass()):
        clean(model)
    _drop_unused_outputs(model.graph)
    if allowed_ops is not None:  # while dimensions still have the tracer's names
        check_static(spec, model.graph)
    conform(spec, model.graph)
    if allowed_ops is not None:
        check_operators(spec, model.graph, allowed_ops)

    model.producer_name, model.producer_version = "laco-deploy", None
    return save_model(model, folder / f"{stem or spec.name}.onnx", share=share)


def _trace(module: nn.Module, spec: GraphSpec, opset: int) -> ir.Model:
    dynamic_dims = {
        dim: torch.export.Dim(dim)
        for one in spec.inputs
        for dim in one.dims
        if isinstance(dim, str)
    }
    shapes = [
        {axis: dynamic_dims[dim] for axis, dim in enumerate(one.dims) if isinstance(dim, str)}
        for one in spec.inputs
    ]

    def traced() -> ir.Model:
        program = torch.onnx.export(
            module.eval(),
            tuple(_example(one) for one in spec.inputs),
            dynamo=True,
            optimize=False,  # done once, by us, without a limit of size
            opset_version=opset,
            dynamic_shapes=_nested(module, shapes),
            input_names=[one.name for one in spec.inputs],
            output_names=[one.name for one in spec.outputs],
            verbose=False,
        )
        if program is None:  # only without dynamo
            raise ExportError(f"torch.onnx.export gave no {spec.name} graph. Upgrade torch.")
        return program.model

    with torch.no_grad(), _quiet():
        try:
            with repeats_left_out(module, spec):
                model = traced()
            put_copies(model.graph)
        except Exception as error:  # whatever it is, a trace of all of it may do, or says why not
            logger.debug("all blocks of %s are traced: %s", spec.name, _cause(error))
        else:
            return model
        try:
            return traced()
        except ExportError:
            raise
        except Exception as error:  # torch raises many kinds
            raise ExportError(
                f"the {spec.name} graph cannot be traced: {_cause(error)}. "
                "Check that the model is of a kind that can be exported."
            ) from error


def _cause(error: BaseException) -> str:
    """What went wrong first, on one line: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the tracer's notes on its own affairs, and nothing else."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name: ", UserWarning)
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _example(spec: TensorSpec) -> Tensor:
    sizes = [EXAMPLE_SIZES[dim] if isinstance(dim, str) else dim for dim in spec.dims]
    return torch.zeros(sizes, dtype=getattr(torch, spec.dtype))


def _nested(module: nn.Module, shapes: Sequence[Any]) -> tuple[Any, ...]:
    """One entry per parameter of `forward`, as torch wants them: `*past` is one parameter."""
    parameters = inspect.signature(module.forward).parameters.values()
    single = sum(one.kind is not inspect.Parameter.VAR_POSITIONAL for one in parameters)
    rest = (tuple(shapes[single:]),) if single < len(parameters) else ()
    return (*shapes[:single], *rest)


def _transpose_when_written(graph: ir.Graph) -> None:
    """Turn `Transpose` of a weight into a weight that is transposed while it is written.

    Folding it as other constants would hold a second copy of nearly the whole model.
    """
    for node in graph:
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.const_value is None or weight.is_graph_input():
            continue
        order = node.attributes.get_ints("perm") or range(len(weight.const_value.shape))[::-1]
        turned = _Turned(weight.const_value, tuple(order))
        value = ir.Value(
            name=f"{weight.name}.transposed",
            const_value=ir.LazyTensor(
                turned, weight.const_value.dtype, turned.shape, name=f"{weight.name}.transposed"
            ),
            type=ir.TensorType(weight.const_value.dtype),
            shape=turned.shape,
        )
        graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        graph.remove(node, safe=True)


_TILE = 64
"""Rows and columns of a matrix that fit into a core's cache, read and written."""


class _Turned:
    """A transposed tensor that is made when it is called."""

    def __init__(self, tensor: ir.TensorProtocol, order: tuple[int, ...]) -> None:
        self.tensor, self.order = tensor, order
        sizes = tensor.shape.numpy()
        self.shape = ir.Shape([sizes[axis] for axis in order])

    def __call__(self) -> ir.TensorProtocol:
        values = self.tensor.numpy()
        if values.ndim != 2 or self.order != (1, 0):
            return ir.tensor(np.ascontiguousarray(values.transpose(self.order)))
        turned = np.empty(values.shape[::-1], values.dtype)
        # Row by row, what is read or what is written would lie far apart: five times as long.
        for row in range(0, values.shape[0], _TILE):
            for column in range(0, values.shape[1], _TILE):
                tile = values[row : row + _TILE, column : column + _TILE]
                turned[column : column + _TILE, row : row + _TILE] = tile.T
        return ir.tensor(turned)


def _drop_unused_outputs(graph: ir.Graph) -> None:
    """Leave trailing outputs out that nobody reads, and others between them without a name."""
    results = set(graph.outputs)
    for node in graph:
        read = [bool(value.uses()) or value in results for value in node.outputs]
        node.resize_outputs(max((i + 1 for i, used in enumerate(read) if used), default=1))
        for value, used in zip(node.outputs, read, strict=False):
            if not used:
                value.name = ""


__all__ = ["ENCODER_OPS", "OPSET", "write_graph"]
