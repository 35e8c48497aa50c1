"""A graph held against the declaration of its inputs and outputs."""

from __future__ import annotations

from onnxscript import ir

from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import GraphSpec, TensorSpec

DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "bool": ir.DataType.BOOL,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}
"""Types of tensors by the names that declarations have for them, which are torch's as well."""


def conform(spec: GraphSpec, graph: ir.Graph) -> None:
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
            if value.dtype != DTYPES[one.dtype]:
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


__all__ = ["DTYPES", "conform"]
