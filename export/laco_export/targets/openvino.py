"""OpenVINO IR, with the KV cache inside the decoder and attention in the form the plugins fuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from laco_export.precision import PrecisionMenu, Precisions
from laco_export.targets.base import CompileRequest, TargetType
from laco_export.targets.openvino_activations import int8_activations
from laco_export.targets.openvino_genai import (
    FOLDER,
    GENAI_NAMES,
    check_installed,
    write_genai_files,
)
from laco_export.targets.openvino_quantize import bfloat16_weights, int4_weights, int8_weights
from laco_runtimes.engines.openvino import import_openvino, openvino_core
from laco_runtimes.errors import ExportError, LacoError
from laco_runtimes.graphs import cache_names, stateful_decoder

if TYPE_CHECKING:
    from openvino import Model, Node, Output


@dataclass(frozen=True, slots=True)
class Storage:
    """How one precision is reached from the fp32 model."""

    change: Callable[[Model, CompileRequest], Model] | None = None
    half: bool = False
    """Floats are written in 16 bits."""
    cache: str | None = None
    """Type of the KV cache, whoever loads the decoder; None for an encoder. Left to itself a CPU
    takes 8 bits, and reads them more slowly than 16 (docs/openvino.md)."""


VISION: Mapping[str, Storage] = {
    "fp32": Storage(),
    "fp16": Storage(half=True),
    "bf16": Storage(bfloat16_weights),
    "int8": Storage(int8_activations),
    "int8w": Storage(int8_weights),
}
LANGUAGE: Mapping[str, Storage] = {
    "fp32": Storage(cache="f32"),
    "fp16": Storage(half=True, cache="f16"),
    "bf16": Storage(bfloat16_weights, cache="f16"),
    "int8": Storage(int8_weights, cache="f16"),
    "int4": Storage(int4_weights, cache="f16"),
}


def compile_graph(request: CompileRequest) -> str:
    """Convert one ONNX graph to `.xml` and `.bin` in `openvino/`, in the precision asked for.

    The three graphs of the model itself have the names that `openvino_genai` looks for.

    Raises:
        ExportError: OpenVINO refuses the graph, or names are lost in the conversion.
        MissingPackageError: what the precision needs is not installed.
    """
    openvino = import_openvino()
    check_installed()

    spec = request.spec
    storage = (VISION if spec.name == "vision_encoder" else LANGUAGE)[request.precision]
    path = _place(request)
    try:
        # The weights stay in the ONNX file, mapped into memory, until they are written.
        model = openvino_core().read_model(request.root / request.onnx)
        _drop_nan_guards(model)
        if spec.name == "decoder":
            spec = stateful_decoder(request.language)
            _share_key_value_heads(model)
            _make_stateful(model, request.language.layers)
        model.validate_nodes_and_infer_types()
        if storage.change is not None:
            model = storage.change(model, request)
        if spec.name == "decoder" and storage.cache is not None:
            model.set_rt_info(storage.cache, ["runtime_options", "KV_CACHE_PRECISION"])
        (request.root / path).parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, request.root / path, compress_to_fp16=storage.half)
    except RuntimeError as error:
        if isinstance(error, LacoError):
            raise
        raise ExportError(
            f"OpenVINO cannot convert the {spec.name} graph: {error}. "
            "Check its version, or export for another target."
        ) from error
    found = {port.any_name for port in (*model.inputs, *model.outputs)}
    if lost := sorted({one.name for one in (*spec.inputs, *spec.outputs)} ^ found):
        raise ExportError(
            f"the converted {spec.name} graph has lost or gained {', '.join(lost)}. "
            "Check the version of openvino, or export for another target."
        )
    return str(path)


def _place(request: CompileRequest) -> PurePosixPath:
    """`openvino/<name that genai looks for>.xml`; baselines in a folder of their own below it."""
    source = PurePosixPath(request.onnx)
    if source.parts[0] == "baseline":
        return PurePosixPath(FOLDER, *source.parts).with_suffix(".xml")
    return PurePosixPath(FOLDER, GENAI_NAMES[request.spec.name] + ".xml")


def _drop_nan_guards(model: Model) -> None:
    """Take out Select(IsNaN(y), 0, y) behind every attention.

    ONNX wants zeros where a row is masked throughout; with our finite mask there is never a NaN,
    and the guard would read and write the whole output twice.
    """
    for attention in _nodes(model, "ScaledDotProductAttention"):
        # Nodes are held before anything is rewired: a port does not keep its node alive.
        readers = [port.get_node() for port in attention.output(0).get_target_inputs()]
        for guard in readers:
            if guard.get_type_name() == "Select":
                guard.output(0).replace(attention.output(0))


def _share_key_value_heads(model: Model) -> None:
    """Repeat key and value heads by Broadcast rather than Tile.

    Both do the same; only Broadcast is known to the plugins' fusion of attention with its KV cache,
    which then repeats nothing at all (upstream: intel_cpu's stateful_sdpa_fusion.cpp).
    """
    for attention in _nodes(model, "ScaledDotProductAttention"):
        heads = attention.get_input_partial_shape(0)[1].get_length()
        for port in (1, 2):
            cache = _behind_repeat(attention.input_value(port))
            if cache is not None:
                attention.input(port).replace_source_output(_repeated(cache, heads))


def _behind_repeat(source: Output) -> Output | None:
    """What Reshape(Tile(Unsqueeze(x))) repeats, or None where there is no such chain."""
    for kind in ("Reshape", "Tile", "Unsqueeze"):
        node = source.get_node()
        if node.get_type_name() != kind:
            return None
        source = node.input_value(0)
    return source


def _repeated(cache: Output, heads: int) -> Output:
    """[B, K, T, d] -> [B, heads, T, d]."""
    from openvino import opset13 as ops

    shape = cache.get_partial_shape()
    shared, dim = shape[1].get_length(), shape[3].get_length()
    apart = ops.unsqueeze(cache, _integers(2))
    wide = ops.broadcast(
        apart, _integers(1, 1, heads // shared, 1, 1), broadcast_spec="BIDIRECTIONAL"
    )  # [B, K, heads / K, T, d]
    return ops.reshape(wide, _integers(0, heads, -1, dim), special_zero=True).output(0)


def _make_stateful(model: Model, layers: int) -> None:
    """Turn cache inputs and outputs into state: Gather(ReadValue, beam_idx) ... Assign."""
    from openvino import Type
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    beams = ops.parameter([-1], Type.i32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beams])
    past, present = cache_names(layers, "past_key_values"), cache_names(layers, "present")
    for name in past:
        cache = model.input(name)
        readers = list(cache.get_target_inputs())
        picked = ops.gather(cache, beams, _integers(0))  # [B, K, P, d]
        for reader in readers:
            reader.replace_source_output(picked.output(0))
    apply_make_stateful_transformation(model, dict(zip(past, present, strict=True)))

    # A state that was never written is empty, for as many rows as the first input has.
    shape_of = ops.shape_of(model.input("inputs_embeds"))
    batch = ops.gather(shape_of, _integers(0), ops.constant(0, Type.i64))
    for read in _nodes(model, "ReadValue"):
        shape = read.get_output_partial_shape(0)
        rest = _integers(shape[1].get_length(), 0, shape[3].get_length())
        empty = ops.broadcast(ops.constant(0.0, Type.f32), ops.concat([batch, rest], 0))
        read.set_arguments([empty])


def _nodes(model: Model, kind: str) -> list[Node]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def _integers(*values: int) -> Node:
    from openvino import opset13 as ops

    return ops.constant(np.array(values, np.int64))


TARGET = TargetType(
    name="openvino",
    package="openvino",
    extra="openvino",
    precisions=PrecisionMenu(
        vision=tuple(VISION),
        llm=tuple(LANGUAGE),
        exact=Precisions("fp32", "fp32"),
        fast=(Precisions("int8", "int8"), Precisions("int8w", "int8"), Precisions("fp32", "fp32")),
    ),
    calibrated=("int8",),
    calibration="ranges",
    compile=compile_graph,
    finish=write_genai_files,
)

__all__ = ["LANGUAGE", "TARGET", "VISION", "compile_graph"]
