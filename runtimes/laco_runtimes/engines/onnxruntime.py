"""ONNX Runtime: the graphs of `onnx/` as they are, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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
from laco_runtimes.errors import EngineError
from laco_runtimes.manifest import LanguageFacts

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Devices by the name a user gives."""

RETRY = "Check the free memory, or export the model again."


def load(request: LoadRequest) -> LoadedEngine:
    """Open the three graphs on one device.

    Raises:
        EngineError: an unknown device, a build of ONNX Runtime without it, a provider that did not
            start, or a graph that cannot be loaded.
    """
    device, reason = _choose(request.device)
    facts, root = request.manifest.language, request.root
    vision = graphs.vision_encoder(
        request.manifest.vision.image_size, request.variant.tokens_per_tile, facts.hidden_size
    )
    return LoadedEngine(
        vision=_Vision(
            _open(root / request.variant.vision_encoder, vision, device, request.threads)
        ),
        language=_Language(
            # A look-up in a table has no work for a second thread.
            _open(
                root / request.manifest.embed_tokens,
                graphs.embed_tokens(facts.hidden_size),
                device,
                1,
            ),
            _open(root / request.manifest.decoder, graphs.decoder(facts), device, request.threads),
            facts,
            device,
        ),
        device=device,
        reason=reason,
    )


class _Vision:
    def __init__(self, session: InferenceSession) -> None:
        self._session = session

    def encode(self, pixel_values: Floats) -> Floats:
        with engine_errors("encoding the image with ONNX Runtime", RETRY):
            [features] = self._session.run(["image_features"], {"pixel_values": pixel_values})
        return np.asarray(features, np.float32)  # [tiles, N', D]


class _Language:
    """The KV cache stays in ONNX Runtime's own memory, on the device, from step to step."""

    def __init__(
        self,
        embed: InferenceSession,
        decoder: InferenceSession,
        facts: LanguageFacts,
        device: str,
    ) -> None:
        self._embed = embed
        self._decoder = decoder
        self._facts = facts
        self._device = device
        self._past = graphs.cache_names(facts.layers, "past_key_values")
        self._present = graphs.cache_names(facts.layers, "present")
        self._length = 0
        self._cache = self._empty_cache()

    @property
    def length(self) -> int:
        return self._length

    def embed(self, ids: Sequence[int]) -> Floats:
        with engine_errors("embedding tokens with ONNX Runtime", RETRY):
            [embeds] = self._embed.run(
                ["inputs_embeds"], {"input_ids": np.asarray([ids], np.int64)}
            )
        return np.asarray(embeds[0], np.float32)  # [sequence, D]

    def prefill(self, embeds: Floats) -> Floats:
        total = self._length + len(embeds)
        with engine_errors("decoding with ONNX Runtime", RETRY):
            binding = self._decoder.io_binding()
            inputs = {
                "inputs_embeds": np.ascontiguousarray(embeds[None], np.float32),  # [1, sequence, D]
                "attention_mask": np.ones((1, total), np.int64),
                "position_ids": np.arange(self._length, total, dtype=np.int64)[None],
            }
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            for name, value in zip(self._past, self._cache, strict=True):
                binding.bind_ortvalue_input(name, value)
            binding.bind_output("logits")
            for name in self._present:
                binding.bind_output(name, self._device)
            self._decoder.run_with_iobinding(binding)
            logits, *cache = binding.get_outputs()
        self._cache, self._length = cache, total
        return np.asarray(logits.numpy()[0, -1], np.float32)  # [V]

    def step(self, token: int) -> Floats:
        return self.prefill(self.embed([token]))

    def rewind(self, length: int) -> None:
        check_rewind(length, self._length)
        if length == 0:
            self._cache = self._empty_cache()
        elif length < self._length:
            # [1, heads, past, dim]
            self._cache = [self._value(value.numpy()[:, :, :length]) for value in self._cache]
        self._length = length

    def _empty_cache(self) -> list[OrtValue]:
        empty = np.zeros((1, self._facts.kv_heads, 0, self._facts.head_dim), np.float32)
        return [self._value(empty) for _ in self._past]

    def _value(self, array: Floats) -> OrtValue:
        from onnxruntime import OrtValue

        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device)


def _choose(asked: str) -> tuple[str, str]:
    import onnxruntime

    if asked == "auto":
        return "cpu", "the default of this engine; a GPU is used when asked for with device 'cuda'"
    if asked not in PROVIDERS:
        raise EngineError(
            f"ONNX Runtime has no device {asked!r}. Choose one of: auto, {', '.join(PROVIDERS)}."
        )
    if PROVIDERS[asked] not in onnxruntime.get_available_providers():
        raise EngineError(
            f"this build of ONNX Runtime cannot use device {asked!r}. "
            "Replace it: pip uninstall onnxruntime, then pip install 'laco-deploy[onnxruntime-gpu]'"
        )
    return asked, "asked for"


def _open(path: Path, spec: graphs.GraphSpec, device: str, threads: int | None) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    with engine_errors(f"loading '{path}' with ONNX Runtime", RETRY):
        session = onnxruntime.InferenceSession(path, options, providers=[PROVIDERS[device]])
    # ONNX Runtime puts a provider that does not start aside and goes on without it.
    if PROVIDERS[device] not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime could not start device {device!r}. Check that the driver and the CUDA "
            "libraries that this build of onnxruntime-gpu needs are installed."
        )
    check_names(
        spec,
        [one.name for one in session.get_inputs()],
        [one.name for one in session.get_outputs()],
    )
    return session


__all__ = ["load"]
