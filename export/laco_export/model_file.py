"""ONNX models on disk: a graph in one file, its weights in another that several graphs may share.

Weights are written one at a time and never held together: a tensor may be a view of a trained
model's memory, of a file, or something still to be computed (`onnx_ir.LazyTensor`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxscript import ir

from laco_runtimes.errors import ExportError

INLINE_BYTES = 256
"""Smaller tensors stay in the graph's own file, where shape inference sees them."""

_PAGE, _LARGE, _LINE = 4096, 2**20, 64


def save_model(model: ir.Model, path: Path, *, share: Path | None = None) -> Path:
    """Write a model and check it.

    Args:
        model: its weights are references to the written file afterwards.
        path: of the `.onnx` file; weights go to `<name>.data` beside it. The folder is made.
        share: `.onnx` file in the same folder whose weights file is used instead: what is there
            already is referred to, what is not goes to its end.

    Returns:
        `path`.

    Raises:
        ExportError: what comes out is not valid ONNX.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    large, tensors = [], []
    for value in (one for graph in model.graphs() for one in graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= INLINE_BYTES:
            large.append(value)
            tensors.append(tensor)
        elif isinstance(tensor, ir.LazyTensor):
            value.const_value = tensor.raw()
    if share is None:
        placed = _write_weights(tensors, path.with_name(f"{path.name}.data"))
    else:
        placed = _add_weights(tensors, share)
    for value, tensor in zip(large, placed, strict=True):
        value.const_value = tensor
    try:
        with _replacing(path) as (_, temporary):
            ir.save(model, temporary, format="protobuf")
    except BaseException:
        if share is None:  # weights of no graph
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)
        raise
    _check(path)
    return path


def _write_weights(tensors: Sequence[ir.TensorProtocol], path: Path) -> list[ir.TensorProtocol]:
    if not tensors:
        return []
    with _replacing(path) as (file, _):
        return [_append(file, tensor, path) for tensor in tensors]


def _add_weights(tensors: Sequence[ir.TensorProtocol], share: Path) -> list[ir.TensorProtocol]:
    """Refer to weights that another graph has, and write the others behind them."""
    known: dict[tuple[ir.DataType, tuple[int, ...]], list[ir.ExternalTensor]] = {}
    data = share.with_name(f"{share.name}.data")
    for value in ir.load(share).graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            data = Path(value.const_value.path)  # which may itself be shared
            known.setdefault(_kind(value.const_value), []).append(value.const_value)
    before = data.stat().st_size if data.exists() else 0
    placed: list[ir.TensorProtocol] = []
    with data.open("ab") as file:
        try:
            for tensor in tensors:
                same = _find(tensor, known.get(_kind(tensor), []))
                placed.append(same or _append(file, tensor, data))
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise
    return placed


def _kind(tensor: ir.TensorProtocol) -> tuple[ir.DataType, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape.numpy())


def _find(
    tensor: ir.TensorProtocol, candidates: Sequence[ir.ExternalTensor]
) -> ir.ExternalTensor | None:
    if not candidates:
        return None
    values = _bits(tensor.numpy())
    for one in candidates:
        stored = _bits(one.numpy())  # a view of the file
        # First a few values: most candidates are the same weight of another layer.
        if np.array_equal(stored[:1], values[:1]) and np.array_equal(stored, values):
            return ir.ExternalTensor(
                one.location,
                one.offset,
                one.length,
                one.dtype,
                shape=one.shape,
                name=str(tensor.name),
                base_dir=one.base_dir,
            )
    return None


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """As whole numbers in one dimension: NaN is then equal to itself without further copies."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(f"u{flat.itemsize}")


def _append(file: BinaryIO, tensor: ir.TensorProtocol, path: Path) -> ir.ExternalTensor:
    align = _PAGE if tensor.nbytes >= _LARGE else _LINE  # engines map large weights from the file
    file.seek(0, os.SEEK_END)
    file.write(b"\0" * (-file.tell() % align))
    offset = file.tell()
    tensor.tofile(file) if hasattr(tensor, "tofile") else file.write(tensor.tobytes())
    file.flush()
    length = os.fstat(file.fileno()).st_size - offset
    return ir.ExternalTensor(
        path.name,
        offset,
        length,
        tensor.dtype,
        shape=tensor.shape,  # type: ignore[arg-type]  # static, as of every weight
        name=str(tensor.name),
        base_dir=path.parent,
    )


@contextmanager
def _replacing(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file beside `path` that takes its place at the end, or goes away if that is not reached."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, temporary
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(path: Path) -> None:
    """Hold the file against ONNX's own rules; inferred shapes are written into it."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{path.name} is not valid ONNX: {error}. Report this as a defect."
        ) from error


__all__ = ["INLINE_BYTES", "save_model"]
