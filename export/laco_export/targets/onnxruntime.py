"""ONNX Runtime: one bundle for its CPU and CUDA providers, with the operators that it fuses best.

The decoder is of flavour `contrib`: GroupQueryAttention over one KV buffer that is written in
place. In fp32 the engine loads the exporter's own graphs; everything else is written anew below
`onnxruntime/`, or where the one layout that was asked for wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from laco_export.half import HalfName, to_half
from laco_export.layouts import LAYOUTS
from laco_export.precision import PrecisionMenu, Precisions
from laco_export.targets.base import CompileRequest, FinishRequest, TargetType
from laco_export.targets.onnxruntime_level import choose_level
from laco_export.targets.onnxruntime_weights import (
    FASTEST_LEVEL,
    copy_graph,
    write_channels,
    write_int8_table,
    write_nbits,
)
from laco_runtimes.errors import ArgumentError, ExportError
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import TOKENIZER_NAME, FlavourName

FOLDER = "onnxruntime"

FLAVOUR: FlavourName = "contrib"

HEAD_STEP = 16
"""Of the width of a head (onnxruntime's group_query_attention_helper.h)."""


def compile_graph(request: CompileRequest) -> str:
    """Write one graph in its precision; where nothing changes, the exporter's own is used.

    Raises:
        ArgumentError: a layout that cannot be had in this precision.
        ExportError: heads of a width that `contrib` does not take, or a graph that cannot be
            written in half precision.
    """
    for name in request.options.layouts:
        LAYOUTS[name].check(request.precision)
    if request.form is not None:
        _check_form(request.form, request)
    out = _place(request)
    if request.precision == "fp32" and out.parts[0] == FOLDER:
        return request.onnx
    _WRITERS[request.spec.name, request.precision](request, request.root / out)
    return str(out)


def _check_form(form: DecoderForm, request: CompileRequest) -> None:
    facts, layouts = request.language, request.options.layouts
    if form.flavour == FLAVOUR and facts.head_dim % HEAD_STEP:
        raise ExportError(
            f"GroupQueryAttention of ONNX Runtime rotates heads of a multiple of {HEAD_STEP}, and "
            f"those of this model are {facts.head_dim} wide. Export with --decoder stateful."
        )
    if form.flavour != FLAVOUR and layouts:
        raise ArgumentError(
            f"the layout {layouts[0]} is written with a decoder of flavour {FLAVOUR} alone. "
            "Leave the layout out, or the flavour."
        )


def finish(request: FinishRequest) -> None:
    """Write the layouts that were asked for."""
    for name in request.options.layouts:
        LAYOUTS[name].write(LAYOUTS[name], request)


def _place(request: CompileRequest) -> PurePosixPath:
    """Where a compiled graph belongs: with one layout asked for, the bundle runs that one's."""
    path = PurePosixPath(request.onnx)
    if path.parts[0] == "onnx":
        if len(request.options.layouts) == 1:
            layout = LAYOUTS[request.options.layouts[0]]
            return PurePosixPath(layout.path(request.spec.name, request.precision))
        return PurePosixPath(FOLDER, f"{request.spec.name}.onnx")
    return PurePosixPath(FOLDER, *path.parts)


def _copy(request: CompileRequest, out: Path) -> None:
    copy_graph(request.root / request.onnx, out)


def _half(dtype: HalfName) -> Callable[[CompileRequest, Path], None]:
    def write(request: CompileRequest, out: Path) -> None:
        raw = out.with_name(f"{out.stem}.raw.onnx")
        raw.parent.mkdir(parents=True, exist_ok=True)
        try:
            to_half(request.root / request.onnx, raw, dtype, request.spec)
            copy_graph(raw, out)
        finally:
            for left in raw.parent.glob(f"{raw.name}*"):
                left.unlink()

    return write


def _channels(request: CompileRequest, out: Path) -> None:
    write_channels(request.root / request.onnx, out)


def _table(request: CompileRequest, out: Path) -> None:
    write_int8_table(request.root / request.onnx, out)


def _int8(request: CompileRequest, out: Path) -> None:
    write_nbits(request.root / request.onnx, out, bits=8, level=FASTEST_LEVEL)


def _int4(request: CompileRequest, out: Path) -> None:
    write_nbits(request.root / request.onnx, out, bits=4, level=FASTEST_LEVEL)
    source = request.root / request.onnx
    tokenizer = request.root / TOKENIZER_NAME
    form = request.form or DecoderForm(FLAVOUR)
    choose_level(out, source.with_name("embed_tokens.onnx"), tokenizer, request.language, form)


_WRITERS: Mapping[tuple[str, str], Callable[[CompileRequest, Path], None]] = {
    **{
        (name, precision): write
        for name in ("vision_encoder", "embed_tokens", "decoder")
        for precision, write in {
            "fp32": _copy,
            "fp16": _half("float16"),
            "bf16": _half("bfloat16"),
        }.items()
    },
    ("vision_encoder", "int8"): _int8,
    ("vision_encoder", "int8w"): _channels,
    ("embed_tokens", "int8"): _table,
    ("decoder", "int8"): _int8,
    ("decoder", "int4"): _int4,
}
"""By graph and precision."""

EXACT = Precisions("fp32", "fp32")

TARGET = TargetType(
    name="onnxruntime",
    package="onnxruntime",
    extra="onnxruntime",
    flavour=FLAVOUR,
    other_flavours=("stateful",),
    cache_dtypes={"fp16": "float16", "bf16": "bfloat16"},
    layouts=tuple(LAYOUTS),
    precisions=PrecisionMenu(
        vision=("fp32", "fp16", "bf16", "int8", "int8w"),
        llm=("fp32", "fp16", "bf16", "int8", "int4"),
        exact=EXACT,
        # Not int8 for the encoder: whether it is faster than fp32 hangs on the CPU and its load.
        fast=(Precisions("fp32", "int4"), Precisions("fp32", "int8"), EXACT),
    ),
    compile=compile_graph,
    finish=finish,
)

__all__ = ["TARGET", "compile_graph", "finish"]
