"""OpenVINO: the compiled graphs of `openvino/` on an Intel or ARM CPU, or an Intel GPU or NPU."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laco_runtimes import graphs
from laco_runtimes.engines.base import (
    Capabilities,
    Floats,
    LoadedEngine,
    LoadRequest,
    cannot_score,
    check_names,
    check_rewind,
    check_room,
    engine_errors,
)
from laco_runtimes.engines.openvino_graph import FIRST_LOGIT, embedding_rows, keep_positions
from laco_runtimes.engines.openvino_joined import join_layers
from laco_runtimes.errors import ArgumentError, EngineError

if TYPE_CHECKING:
    from openvino import Core, InferRequest, Model

Embed = Callable[[Sequence[int]], Floats]
"""Token ids to embeddings, [len(ids), D]."""

RETRY = "Check the free memory, or export the model again."

MAX_FORGOTTEN = 64
"""Tokens that a rewind may leave in the KV cache under a mask: what drafts of a few hundred tokens
leave behind. Attention reads them in vain, a fraction of a percent of a step."""

COMPUTE = {"fp32": ("f32", "FP32"), "fp16": ("f16", "FP16"), "bf16": ("bf16", "BF16")}
"""Precision to compute in, and the capability that a device must have for it.

A device without it, and weights of 8 and 4 bits, leave the choice to OpenVINO: 32-bit floats on a
CPU that has nothing faster. The type of the KV cache is in the decoder itself (`runtime_options`).
"""


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
        config = {"PERFORMANCE_HINT": "LATENCY"}
        config |= _compute_hint(core, device, manifest.precision[spec.name])
        if request.threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(request.threads)
        with engine_errors(f"compiling {spec.name} ('{path}') with OpenVINO for {device}", RETRY):
            return core.compile_model(model, device, config).create_infer_request()

    encoder, path = (
        graphs.vision_encoder(
            manifest.vision.image_size, request.variant.tokens_per_tile, facts.hidden_size
        ),
        request.variant.vision_encoder,
    )
    vision = _Vision(compiled(read(path, encoder), path, encoder))

    table, path = graphs.embed_tokens(facts.hidden_size), manifest.embed_tokens
    graph = read(path, table)
    embed = embedding_rows(graph) or _inferred(compiled(graph, path, table))

    decoder, path = graphs.stateful_decoder(facts), manifest.decoder
    graph = read(path, decoder)
    with engine_errors(f"preparing decoder ('{path}') for OpenVINO", RETRY):
        # Tried with the CPU plugin; a GPU is given the graph as its authors test it.
        scores = device == "CPU" and keep_positions(graph)
        if device == "CPU":
            join_layers(graph)
    language = _Language(embed, compiled(graph, path, decoder), facts.max_positions, scores=scores)
    return LoadedEngine(
        vision=vision,
        language=language,
        device=device,
        reason=reason,
        capabilities=Capabilities(scores=scores, rewinds=True, batches_tiles=True),
    )


def _compute_hint(core: Core, device: str, precision: str) -> dict[str, str]:
    hint, capability = COMPUTE.get(precision, ("", ""))
    if not hint or capability not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        return {}
    return {"INFERENCE_PRECISION_HINT": hint}


def _run(request: InferRequest, inputs: Mapping[str, NDArray[Any]], output: str) -> Floats:
    """One inference; a copy of an output, which the next inference writes over.

    Never by `infer`: where memory ends in the middle, that of 2026.4 returns as if all were well,
    and the output is still the last one's. `wait` raises.
    """
    from openvino import Tensor

    for name, array in inputs.items():
        request.set_tensor(name, Tensor(array, shared_memory=True))
    request.start_async()
    request.wait()
    return np.array(request.get_tensor(output).data, np.float32)


class _Vision:
    def __init__(self, request: InferRequest) -> None:
        self._request = request

    def encode(self, pixel_values: Floats) -> Floats:
        with engine_errors("encoding the image with OpenVINO", RETRY):
            pixels = np.ascontiguousarray(pixel_values, np.float32)
            return _run(self._request, {"pixel_values": pixels}, "image_features")


def _inferred(request: InferRequest) -> Embed:
    """The look-up of a graph that is no plain table."""

    def embed(ids: Sequence[int]) -> Floats:
        inputs = {"input_ids": np.asarray([ids], np.int64)}
        embeds: Floats = _run(request, inputs, "inputs_embeds")[0]
        return embeds

    return embed


class _Language:
    """The KV cache is the state of the decoder's inference request.

    A rewind leaves what it forgets where it is, under a mask: to write states anew takes as long as
    a step. Only where that would be more than `MAX_FORGOTTEN` tokens are the states made smaller.
    """

    def __init__(
        self, embed: Embed, decoder: InferRequest, max_positions: int, *, scores: bool
    ) -> None:
        from openvino import Tensor

        self._embed, self._decoder, self._scores = embed, decoder, scores
        self._longest = max_positions
        # Inputs are views of arrays that stay, so that a step makes no more than it needs.
        self._mask = np.ones((1, max_positions + MAX_FORGOTTEN), np.int64)
        self._positions = np.arange(max_positions, dtype=np.int64)[None]
        self._first = np.full(1, -1, np.int64)
        decoder.set_tensor("beam_idx", Tensor(np.zeros(1, np.int32)))
        if scores:
            decoder.set_tensor(FIRST_LOGIT, Tensor(self._first, shared_memory=True))
        self._length = 0
        self._held = 0
        """Tokens in the states, forgotten ones among them."""
        self._whole = True
        """The last pass came to its end, so all states hold the same tokens."""

    @property
    def length(self) -> int:
        return self._length

    def embed(self, ids: Sequence[int]) -> Floats:
        with engine_errors("embedding tokens with OpenVINO", RETRY):
            return self._embed(ids)  # [sequence, D]

    def prefill(self, embeds: Floats) -> Floats:
        logits: Floats = self._append(embeds, 1)[0]
        return logits

    def step(self, token: int) -> Floats:
        return self.prefill(self.embed([token]))

    def score(self, tokens: Sequence[int]) -> Floats:
        if not self._scores:
            raise cannot_score()
        return self._append(self.embed(tokens), len(tokens))

    def _append(self, embeds: Floats, wanted: int) -> Floats:
        """Logits of the last `wanted` positions, [wanted, V]."""
        start, total = self._length, self._length + len(embeds)
        check_room(total, self._longest)
        held = self._held + len(embeds)
        self._first[0] = -wanted
        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.ascontiguousarray(embeds[None], np.float32),  # [1, sequence, D]
            "attention_mask": self._mask[:, :held],
            "position_ids": self._positions[:, start:total],
        }
        self._whole = False
        with engine_errors("decoding with OpenVINO", RETRY):
            logits: Floats = _run(self._decoder, inputs, "logits")[0]
        self._whole = True
        self._length, self._held = total, held
        return logits

    def rewind(self, length: int) -> None:
        check_rewind(length, self._length)
        if length == 0:
            self._decoder.reset_state()
            self._mask[:] = 1
            self._held, self._whole = 0, True
        elif not self._whole:
            raise EngineError(
                "the last pass failed, and what the KV cache holds is not known. "
                "Start a new dialogue."
            )
        elif length < self._length:
            kept = np.flatnonzero(self._mask[0, : self._held])[:length]
            if self._held - length > MAX_FORGOTTEN:
                with engine_errors("shortening the KV cache with OpenVINO", RETRY):
                    self._shorten(kept)
            else:
                self._mask[0, kept[-1] + 1 : self._held] = 0
        self._length = length

    def _shorten(self, kept: NDArray[np.int64]) -> None:
        """Write the states anew. OpenVINO gives them in their declared order of axes.

        A device may hold them permuted or in 8 bits; both are undone on reading and redone on
        writing (tried with the CPU plugin of 2026.4, fused attention, caches of f32, f16 and u8).
        """
        from openvino import Tensor

        self._whole = False
        for state in self._decoder.query_state():
            whole = state.state  # [1, heads, tokens, dim]
            batch, heads, tokens, dim = whole.shape
            if tokens != self._held:
                raise EngineError(
                    f"the KV cache of this device has shape {list(whole.shape)} for "
                    f"{self._held} tokens and cannot be shortened. Start a new dialogue."
                )
            dense = Tensor(whole.element_type, [batch, heads, len(kept), dim])
            np.take(whole.data, kept, axis=2, out=dense.data)
            state.state = dense
        self._mask[:] = 1
        self._held, self._whole = len(kept), True


__all__ = ["MAX_FORGOTTEN", "import_openvino", "load", "openvino_core"]
