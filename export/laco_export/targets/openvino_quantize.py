"""Weights of an OpenVINO model in fewer bits: NNCF, without its telemetry."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from laco_export.targets.base import CompileRequest
from laco_export.targets.openvino_genai import EXTRA
from laco_export.targets.openvino_weights import dense_layers, outputs_first
from laco_runtimes.engines.openvino import import_openvino
from laco_runtimes.errors import ExportError, MissingPackageError

if TYPE_CHECKING:
    from openvino import Model


GROUP_SIZES = (128, 64, 32)
"""Weights that share a scale in int4, largest first."""

SHARE_OF_INT4 = 1.0
"""Of the layers between embeddings and head, which stay in 8 bits."""


def import_nncf() -> ModuleType:
    """NNCF, which must not report what it is used for.

    Raises:
        MissingPackageError: it is not installed.
    """
    import_openvino()  # takes the telemetry package away first; NNCF then uses a stub
    try:
        with _without_torch():
            nncf = importlib.import_module("nncf")
    except ImportError:
        raise MissingPackageError("nncf", EXTRA) from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def bfloat16_weights(model: Model, request: CompileRequest) -> Model:
    """Float weights of two and more dimensions as bfloat16, widened where they are read."""
    openvino = import_openvino()
    ops = importlib.import_module("openvino.opset13")
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or len(node.shape) < 2:
            continue
        if node.get_element_type() != openvino.Type.f32:
            continue
        readers = list(node.output(0).get_target_inputs())
        narrow = openvino.Tensor(openvino.Type.bf16, openvino.Shape(list(node.shape)))
        narrow.data.view(np.uint16)[...] = _rounded(node.get_data())
        wide = ops.convert(openvino.op.Constant(narrow, shared_memory=True), "f32")
        wide.get_rt_info()["decompression"] = ""
        for reader in readers:
            reader.replace_source_output(wide.output(0))
    return model


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 to the upper halves of its bits, to nearest and ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def int8_weights(model: Model, request: CompileRequest) -> Model:
    """Every dense weight and the embeddings in 8 bits, one scale per output channel."""
    nncf = import_nncf()
    with _quiet():
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    outputs_first(model)  # now, when weights have a quarter of the bytes
    return model


def int4_weights(model: Model, request: CompileRequest) -> Model:
    """Dense weights in 4 bits, one scale per group of inputs; head and embeddings in 8 bits.

    Raises:
        ExportError: no group size divides the inputs of every layer.
    """
    nncf = import_nncf()
    group_size = _group_size(model)
    outputs_first(model)
    with _quiet():
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            ratio=SHARE_OF_INT4,
            group_size=group_size,
            backup_mode=nncf.BackupMode.INT8_SYM,
        )


def _group_size(model: Model) -> int:
    """The largest of `GROUP_SIZES` that divides the inputs of every dense layer."""
    widths = {
        int(weight.shape[-1 if dense.get_attributes()["transpose_b"] else -2])
        for dense, weight in dense_layers(model)
    }
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    raise ExportError(
        f"int4 needs layers whose width is a multiple of {GROUP_SIZES[-1]}, and this model has "
        f"widths {sorted(widths)}. Use --llm-precision int8."
    )


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """NNCF imports torch where it finds it: seconds and 250 MB for nothing."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars and tables on stdout, which is ours."""
    with contextlib.redirect_stdout(io.StringIO()), _without_torch():
        yield


__all__ = [
    "GROUP_SIZES",
    "import_nncf",
    "int4_weights",
    "int8_weights",
]
