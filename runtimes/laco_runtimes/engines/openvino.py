"""OpenVINO: the compiled graphs of `openvino/` on an Intel or ARM CPU, or an Intel GPU or NPU."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from laco_runtimes import graphs
from laco_runtimes.engines.base import (
    Capabilities,
    Floats,
    LanguageModel,
    LoadedEngine,
    LoadRequest,
    check_names,
    engine_errors,
)
from laco_runtimes.engines.openvino_graph import embedding_rows, keep_positions
from laco_runtimes.engines.openvino_head import convolve_head
from laco_runtimes.engines.openvino_joined import join_layers
from laco_runtimes.engines.openvino_language import RETRY, Embed, Inference
from laco_runtimes.engines.openvino_paged import PagedLanguage, page_attention
from laco_runtimes.engines.openvino_pointwise import convolve_layers, gemm_is_slow
from laco_runtimes.engines.openvino_stateful import StatefulLanguage
from laco_runtimes.errors import ArgumentError, EngineError

if TYPE_CHECKING:
    from openvino import Core, InferRequest, Model

COMPUTE = {"fp32": ("f32", "FP32"), "fp16": ("f16", "FP16"), "bf16": ("bf16", "BF16")}
"""Precision to compute in, and the capability that a device must have for it.

A device without it, and weights of 8 and 4 bits, leave the choice to OpenVINO: 32-bit floats on a
CPU that has nothing faster. The type of the KV cache is in the decoder itself (`runtime_options`).
"""

PARTITIONER = "TBB_PARTITIONER"
"""How a kernel is divided among threads; not every build of OpenVINO has a choice."""


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which would send usage data from the device.

    Every import of OpenVINO goes through here; it falls back to a stub of its own where the
    telemetry package cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


_CREATING = threading.Lock()
_CORE: Core | None = None


def openvino_core() -> Core:
    """The one `Core` of this process, kept until it ends.

    On Linux a Core gives the thread that first uses the CPU a stack for signals, and takes away
    its own memory when it goes, even if that stack is in use: of two Cores, the older one gone
    first, or one that goes in another thread, is enough. The next signal with a handler in Python
    (Ctrl-C, or the end of a child where torch loads data) then ends the process with a
    segmentation fault (seen with 2026.4.1, `SigAltStackSetup` in src/plugins/intel_cpu).
    """
    global _CORE  # noqa: PLW0603 - what functools.cache cannot do: two threads at once get one
    with _CREATING:
        if _CORE is None:
            _CORE = import_openvino().Core()
        return _CORE


def load(request: LoadRequest) -> LoadedEngine:
    """Compile the three graphs on one device.

    `auto` takes a GPU where there is one that compiles them, and the CPU otherwise.

    Raises:
        ArgumentError: CPU threads asked of another device.
        EngineError: an unknown device, or a graph that cannot be compiled.
    """
    core = openvino_core()
    present = list(core.available_devices)
    asked = request.device.upper()
    if asked == "AUTO":
        return _load_auto(core, request, present)
    # With two GPUs OpenVINO lists GPU.0 and GPU.1, and GPU means the first.
    if asked not in {*present, *(name.partition(".")[0] for name in present)}:
        raise EngineError(
            f"OpenVINO sees no device {request.device!r} here. "
            f"Choose one of: auto, {', '.join(present)}."
        )
    if request.threads is not None and asked != "CPU":
        raise ArgumentError(f"threads are for the CPU, not {asked}. Leave them out, or use CPU.")
    return _load_on(core, request, asked, "asked for")


def _load_auto(core: Core, request: LoadRequest, present: Sequence[str]) -> LoadedEngine:
    if request.threads is not None:
        return _load_on(core, request, "CPU", "CPU threads were asked for")
    if not any(name.startswith("GPU") for name in present):
        return _load_on(core, request, "CPU", "OpenVINO sees no GPU here")
    try:
        return _load_on(core, request, "GPU", "a GPU that compiles the model")
    except EngineError as error:
        return _load_on(core, request, "CPU", f"the GPU refused the model: {error}")


def _load_on(core: Core, request: LoadRequest, device: str, reason: str) -> LoadedEngine:
    manifest, facts = request.manifest, request.manifest.language

    def read(path: str, spec: graphs.GraphSpec) -> Model:
        with engine_errors(f"reading {spec.name} ('{path}') with OpenVINO", RETRY):
            model = core.read_model(request.root / path)
            inputs, outputs = (
                [port.any_name for port in ports] for ports in (model.inputs, model.outputs)
            )
        check_names(spec, inputs, outputs)
        return model

    def compiled(model: Model, path: str, spec: graphs.GraphSpec) -> InferRequest:
        config = latency_config(core, device)
        config |= _compute_hint(core, device, manifest.precision[spec.name])
        if request.threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(request.threads)
        with engine_errors(f"compiling {spec.name} ('{path}') with OpenVINO for {device}", RETRY):
            return core.compile_model(model, device, config).create_infer_request()

    def make(path: str, spec: graphs.GraphSpec) -> Callable[[], InferRequest]:
        return lambda: compiled(read(path, spec), path, spec)

    tokens = request.variant.tokens_per_tile
    encoder = graphs.vision_encoder(manifest.vision.image_size, tokens, facts.hidden_size)

    def make_encoder() -> InferRequest:
        model = read(request.variant.vision_encoder, encoder)
        if device == "CPU":
            with engine_errors(f"preparing {encoder.name} for OpenVINO", RETRY):
                prepare_encoder(core, model)
        return compiled(model, request.variant.vision_encoder, encoder)

    vision = Vision(make_encoder)

    table = graphs.embed_tokens(facts.hidden_size)
    embed = embedding_rows(read(manifest.embed_tokens, table)) or _inferred(
        make(manifest.embed_tokens, table)
    )

    decoder = graphs.stateful_decoder(facts)

    def prepared(*, paged: bool) -> Prepared:
        graph = read(manifest.decoder, decoder)
        if device != "CPU":
            return Prepared(graph)  # as its authors test it
        with engine_errors(f"preparing decoder ('{manifest.decoder}') for OpenVINO", RETRY):
            return prepare_decoder(core, graph, facts.layers, paged=paged)

    ready = [prepared(paged=True)]
    scores, paged = ready[0].scores, ready[0].paged

    def make_decoder() -> InferRequest:
        model = (ready.pop() if ready else prepared(paged=paged)).model
        return compiled(model, manifest.decoder, decoder)

    language: LanguageModel
    if paged:
        language = PagedLanguage(embed, make_decoder, facts.max_positions)
    else:
        language = StatefulLanguage(embed, make_decoder, facts.max_positions, scores=scores)
    return LoadedEngine(
        vision=vision,
        language=language,
        device=device,
        reason=reason,
        capabilities=Capabilities(scores=scores, rewinds=True, batches_tiles=True),
    )


def prepare_encoder(core: Core, graph: Model) -> None:
    """What is done to a vision encoder for the CPU; `graph` itself is changed.

    One whose 8-bit layers become convolutions encodes one tile at a time afterwards, as the plugin
    needs a known batch to leave images where they are.
    """
    if not any(node.get_type_name() == "FakeQuantize" for node in graph.get_ops()):
        return  # nothing is rounded
    [pixels] = graph.inputs
    if gemm_is_slow(core) and convolve_layers(graph):
        graph.reshape([1, *(int(size.get_length()) for size in list(pixels.partial_shape)[1:])])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A decoder as it is compiled."""

    model: Model
    scores: bool = False
    """It is told of how many positions to give logits."""
    paged: bool = False
    """Its KV cache lies in blocks outside of it."""


def prepare_decoder(core: Core, graph: Model, layers: int, *, paged: bool = True) -> Prepared:
    """What is done to a decoder for the CPU; `graph` itself is changed.

    Args:
        core: that compiles it.
        graph: as it was read.
        layers: of the decoder.
        paged: put its cache into blocks, where that can be done.
    """
    scores = keep_positions(graph)
    join_layers(graph)
    copy = page_attention(graph, layers) if paged and scores else None
    if copy is None:
        return Prepared(graph, scores)
    convolve_head(core, copy)
    return Prepared(copy, scores=True, paged=True)


def latency_config(core: Core, device: str) -> dict[str, str]:
    """How every graph is compiled.

    OpenVINO gives each thread its share of a kernel beforehand and waits for the last of them; told
    to divide it as threads come, which its CPU plugin can, an encoding or a prefill takes a twelfth
    less on two cores that other work uses too (docs/runtime.md).
    """
    config = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU" and PARTITIONER in core.get_property(device, "SUPPORTED_PROPERTIES"):
        config[PARTITIONER] = "AUTO"
    return config


def _compute_hint(core: Core, device: str, precision: str) -> dict[str, str]:
    hint, capability = COMPUTE.get(precision, ("", ""))
    if not hint or capability not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        return {}
    return {"INFERENCE_PRECISION_HINT": hint}


class Vision:
    """An encoder that takes all tiles at once, or one at a time where its graph does."""

    def __init__(self, make: Callable[[], InferRequest]) -> None:
        self._graph = Inference(make)

    def encode(self, pixel_values: Floats) -> Floats:
        """See `VisionEncoder`."""
        with engine_errors("encoding the image with OpenVINO", RETRY):
            pixels = np.ascontiguousarray(pixel_values, np.float32)
            whole = self._graph.request().get_compiled_model().inputs[0].partial_shape.is_dynamic
            parts = [pixels] if whole else np.split(pixels, len(pixels))
            found = [self._graph.run({"pixel_values": part}, "image_features") for part in parts]
            return found[0] if whole else np.concatenate(found)


def _inferred(make: Callable[[], InferRequest]) -> Embed:
    """The look-up of a graph that is no plain table."""
    graph = Inference(make)

    def embed(ids: Sequence[int]) -> Floats:
        inputs = {"input_ids": np.asarray([ids], np.int64)}
        embeds: Floats = graph.run(inputs, "inputs_embeds")[0]
        return embeds

    return embed


__all__ = [
    "Vision",
    "import_openvino",
    "latency_config",
    "load",
    "openvino_core",
    "prepare_decoder",
    "prepare_encoder",
]
