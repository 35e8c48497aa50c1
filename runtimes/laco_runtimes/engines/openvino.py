"""OpenVINO: the compiled graphs of `openvino/` on an Intel or ARM CPU, or an Intel GPU or NPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from laco_runtimes import graphs
from laco_runtimes.engines.base import (
    Floats,
    LoadedEngine,
    LoadRequest,
    check_names,
    check_rewind,
    engine_errors,
)
from laco_runtimes.errors import ArgumentError, EngineError

if TYPE_CHECKING:
    from openvino import CompiledModel, Core

RETRY = "Check the free memory, or export the model again."

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


def load(request: LoadRequest) -> LoadedEngine:
    """Compile the three graphs on one device.

    `auto` takes a GPU where there is one that compiles them, and the CPU otherwise.

    Raises:
        ArgumentError: CPU threads asked of another device.
        EngineError: an unknown device, or a graph that cannot be compiled.
    """
    openvino = import_openvino()

    core = openvino.Core()
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

    def compiled(path: str, spec: graphs.GraphSpec) -> CompiledModel:
        config = {"PERFORMANCE_HINT": "LATENCY"}
        config |= _compute_hint(core, device, manifest.precision[spec.name])
        if request.threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(request.threads)
        with engine_errors(f"compiling {spec.name} ('{path}') with OpenVINO for {device}", RETRY):
            model = core.compile_model(request.root / path, device, config)
            inputs, outputs = (
                [port.any_name for port in ports] for ports in (model.inputs, model.outputs)
            )
        check_names(spec, inputs, outputs)
        return model

    vision = graphs.vision_encoder(
        manifest.vision.image_size, request.variant.tokens_per_tile, facts.hidden_size
    )
    return LoadedEngine(
        vision=_Vision(compiled(request.variant.vision_encoder, vision)),
        language=_Language(
            compiled(manifest.embed_tokens, graphs.embed_tokens(facts.hidden_size)),
            compiled(manifest.decoder, graphs.stateful_decoder(facts)),
        ),
        device=device,
        reason=reason,
    )


def _compute_hint(core: Core, device: str, precision: str) -> dict[str, str]:
    hint, capability = COMPUTE.get(precision, ("", ""))
    if not hint or capability not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        return {}
    return {"INFERENCE_PRECISION_HINT": hint}


class _Vision:
    def __init__(self, model: CompiledModel) -> None:
        self._request = model.create_infer_request()

    def encode(self, pixel_values: Floats) -> Floats:
        with engine_errors("encoding the image with OpenVINO", RETRY):
            self._request.infer({"pixel_values": pixel_values}, share_inputs=True)
            # The output tensor is overwritten by the next inference.
            return np.array(self._request.get_tensor("image_features").data, np.float32)


class _Language:
    """The KV cache is the state of the decoder's inference request."""

    def __init__(self, embed: CompiledModel, decoder: CompiledModel) -> None:
        self._embed = embed.create_infer_request()
        self._decoder = decoder.create_infer_request()
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def embed(self, ids: Sequence[int]) -> Floats:
        with engine_errors("embedding tokens with OpenVINO", RETRY):
            self._embed.infer({"input_ids": np.asarray([ids], np.int64)}, share_inputs=True)
            # [sequence, D]
            return np.array(self._embed.get_tensor("inputs_embeds").data[0], np.float32)

    def prefill(self, embeds: Floats) -> Floats:
        total = self._length + len(embeds)
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds[None], np.float32),  # [1, sequence, D]
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self._length, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        with engine_errors("decoding with OpenVINO", RETRY):
            self._decoder.infer(inputs, share_inputs=True)
            logits = np.array(self._decoder.get_tensor("logits").data[0, -1], np.float32)  # [V]
        self._length = total
        return logits

    def step(self, token: int) -> Floats:
        return self.prefill(self.embed([token]))

    def rewind(self, length: int) -> None:
        check_rewind(length, self._length)
        if length == 0:
            self._decoder.reset_state()
        elif length < self._length:
            with engine_errors("shortening the KV cache with OpenVINO", "Start a new dialogue."):
                self._cut(length)
        self._length = length

    def _cut(self, length: int) -> None:
        """Keep `length` tokens. OpenVINO gives the states in their declared order of axes.

        A device may hold them permuted or in 8 bits; both are undone on reading and redone on
        writing (tried with the CPU plugin of 2026.4, fused attention, caches of f32 and u8).
        """
        from openvino import Tensor

        for state in self._decoder.query_state():
            whole = state.state  # [1, heads, past, dim]
            batch, heads, past, dim = whole.shape
            if past != self._length:
                raise EngineError(
                    f"the KV cache of this device has shape {list(whole.shape)} for "
                    f"{self._length} tokens and cannot be shortened. Start a new dialogue."
                )
            kept = Tensor(whole, [0, 0, 0, 0], [batch, heads, length, dim])
            dense = Tensor(whole.element_type, kept.shape)
            kept.copy_to(dense)
            state.state = dense


__all__ = ["load"]
