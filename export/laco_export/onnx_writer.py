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
import onnx
import torch
from onnxscript import ir, optimizer
from torch import Tensor, nn

from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import GraphSpec, TensorSpec

OPSET = 23
"""First opset with `Attention`, `RMSNormalization` and `RotaryEmbedding`, which engines fuse."""

DTYPES = {
    "float32": (torch.float32, ir.DataType.FLOAT),
    "int32": (torch.int32, ir.DataType.INT32),
    "int64": (torch.int64, ir.DataType.INT64),
}

EXAMPLE_SIZES = {"tiles": 2, "batch": 2, "sequence": 5, "past": 3, "total": 8}
"""Sizes of the dynamic dimensions while tracing. Never 1, which torch takes for a constant."""

ENCODER_OPS = frozenset(
    {
        *("Conv", "MatMul", "Attention", "Reshape", "Transpose"),
        *("LayerNormalization", "RMSNormalization", "ReduceMean", "Softmax"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal"),
        *("Gelu", "Erf", "Sigmoid", "Tanh"),
    }
)
"""All that a vision encoder may consist of. No Shape, Gather, If, Loop, Scatter, Resize or other
operator whose shapes an engine would learn only while it runs."""

NO_LIMIT = 2**62


def write_graph(
    module: nn.Module, spec: GraphSpec, folder: Path, *, allowed_ops: frozenset[str] | None = None
) -> Path:
    """Trace a module into `<spec.name>.onnx`; its weights go to `<spec.name>.onnx.data` beside it.

    Args:
        module: takes the inputs of `spec` in order, as float32, and returns its outputs in order.
        spec: names, types and dimensions, which the trace is held against.
        folder: where to write; made if it is not there.
        allowed_ops: operators the graph may consist of; None allows all.

    Returns:
        Path of the `.onnx` file.

    Raises:
        ExportError: the module cannot be traced, or what came out is not what `spec` says.
    """
    model = _trace(module, spec)
    # torch folds small constants only; a position table of 1024 x 1024 is looked up at run time.
    optimizer.optimize(model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    _set_static_reshapes(model.graph)
    # The tracer notes its Python stack at every node, with the paths of the machine it ran on.
    passes = ir.passes.common
    for clean in (passes.RemoveUnusedNodesPass(), passes.ClearMetadataAndDocStringPass()):
        clean(model)
    _conform(spec, model.graph)
    _check_operators(spec, model.graph, allowed_ops)

    model.producer_name, model.producer_version = "laco-deploy", None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{spec.name}.onnx"
    ir.save(model, path, external_data=f"{path.name}.data")
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the {spec.name} graph is not valid ONNX: {error}. Report this as a defect."
        ) from error
    return path


def _trace(module: nn.Module, spec: GraphSpec) -> ir.Model:
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
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module.eval(),
                tuple(_example(one) for one in spec.inputs),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=_nested(module, shapes),
                input_names=[one.name for one in spec.inputs],
                output_names=[one.name for one in spec.outputs],
                verbose=False,
            )
    except Exception as error:  # torch raises many kinds
        raise ExportError(
            f"the {spec.name} graph cannot be traced: {_cause(error)}. "
            "Check that the model is of a kind that can be exported."
        ) from error
    if program is None:  # only without dynamo
        raise ExportError(f"torch.onnx.export gave no {spec.name} graph. Upgrade torch.")
    return program.model


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
    return torch.zeros(sizes, dtype=DTYPES[spec.dtype][0])


def _nested(module: nn.Module, shapes: Sequence[Any]) -> tuple[Any, ...]:
    """One entry per parameter of `forward`, as torch wants them: `*past` is one parameter."""
    parameters = inspect.signature(module.forward).parameters.values()
    single = sum(one.kind is not inspect.Parameter.VAR_POSITIONAL for one in parameters)
    rest = (tuple(shapes[single:]),) if single < len(parameters) else ()
    return (*shapes[:single], *rest)


def _set_static_reshapes(graph: ir.Graph) -> None:
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


def _conform(spec: GraphSpec, graph: ir.Graph) -> None:
    """Hold inputs and outputs against the declaration and name computed dimensions after it.

    Raises:
        ExportError: another number, name, type or dimension.
    """
    for kind, declared, found in (
        ("input", spec.inputs, graph.inputs),
        ("output", spec.outputs, graph.outputs),
    ):
        names = [one.name for one in declared], [value.name for value in found]
        if names[0] != names[1]:
            raise _difference(spec, f"{kind}s", ", ".join(names[0]), ", ".join(map(str, names[1])))
        for one, value in zip(declared, found, strict=True):
            if value.dtype != DTYPES[one.dtype][1]:
                raise _difference(spec, f"type of {kind} {one.name!r}", one.dtype, value.dtype)
            if value.shape is None or not _same_dims(one, value.shape):
                raise _difference(spec, f"shape of {kind} {one.name!r}", one.dims, value.shape)
            value.shape = ir.Shape(one.dims)


def _same_dims(spec: TensorSpec, shape: ir.Shape) -> bool:
    if len(shape) != len(spec.dims):
        return False
    for declared, found in zip(spec.dims, shape, strict=True):
        if isinstance(declared, int) or isinstance(found, int):
            if declared != found:
                return False
        # The tracer calls the sum of two dimensions "past + sequence", and we call it "total".
        elif found.value != declared and str(found.value).isidentifier():
            return False
    return True


def _check_operators(spec: GraphSpec, graph: ir.Graph, allowed: frozenset[str] | None) -> None:
    used = {node.op_type for node in graph}
    if allowed is not None and (extra := sorted(used - allowed)):
        raise ExportError(
            f"the {spec.name} graph needs operator {', '.join(extra)}, which is kept out of it for "
            "the engines' sake. Build the model of static reshapes and dense layers only."
        )


def _difference(spec: GraphSpec, what: str, declared: object, found: object) -> ExportError:
    return ExportError(
        f"the {spec.name} graph differs from its declaration in the {what}: declared {declared}, "
        f"found {found}. The model does not fit the facts it was exported with."
    )


__all__ = ["ENCODER_OPS", "OPSET", "write_graph"]
