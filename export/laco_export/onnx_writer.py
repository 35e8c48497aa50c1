"""One traced module to one ONNX file that keeps the promises of its `GraphSpec`."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir, optimizer
from torch import Tensor, nn

from laco_export.static_shapes import (
    ENCODER_OPS,
    check_operators,
    check_static,
    pad_for_constant_tokens,
    set_static_reshapes,
)
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

NO_LIMIT = 2**62


def write_graph(
    module: nn.Module, spec: GraphSpec, folder: Path, *, allowed_ops: frozenset[str] | None = None
) -> Path:
    """Trace a module into `<spec.name>.onnx`; its weights go to `<spec.name>.onnx.data` beside it.

    Args:
        module: takes the inputs of `spec` in order, as float32, and returns its outputs in order.
        spec: names, types and dimensions, which the trace is held against.
        folder: where to write; made if it is not there.
        allowed_ops: operators the graph may consist of; its shapes must then be static, but for
            the first dimension. None allows everything.

    Returns:
        Path of the `.onnx` file.

    Raises:
        ExportError: the module cannot be traced, or what came out is not what `spec` says.
    """
    model = _trace(module, spec)
    # torch folds small constants only; a position table of 1024 x 1024 is looked up at run time.
    optimizer.optimize(model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    set_static_reshapes(model.graph)
    pad_for_constant_tokens(model)
    # The tracer notes its Python stack at every node, with the paths of the machine it ran on.
    passes = ir.passes.common
    for clean in (passes.RemoveUnusedNodesPass(), passes.ClearMetadataAndDocStringPass()):
        clean(model)
    if allowed_ops is not None:  # while dimensions still have the tracer's names
        check_static(spec, model.graph)
    _conform(spec, model.graph)
    if allowed_ops is not None:
        check_operators(spec, model.graph, allowed_ops)

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


def _difference(spec: GraphSpec, what: str, declared: object, found: object) -> ExportError:
    return ExportError(
        f"the {spec.name} graph differs from its declaration in the {what}: declared {declared}, "
        f"found {found}. The model does not fit the facts it was exported with."
    )


__all__ = ["ENCODER_OPS", "OPSET", "write_graph"]
