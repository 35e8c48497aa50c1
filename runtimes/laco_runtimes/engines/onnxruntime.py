"""ONNX Runtime: ONNX graphs on the CPU or an NVIDIA GPU, the same files on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from laco_runtimes import graphs
from laco_runtimes.engines.base import (
    Capabilities,
    Floats,
    LanguageModel,
    LoadedEngine,
    LoadRequest,
    cannot_score,
    check_names,
    check_rewind,
    engine_errors,
)
from laco_runtimes.engines.onnxruntime_cache import CACHES, Cache
from laco_runtimes.engines.onnxruntime_graph import MAX_BYTES, OpenDecoder, keep_positions
from laco_runtimes.errors import EngineError
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import LanguageFacts

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Devices by the name a user gives."""

CUDA_ONLY = ("bf16",)
"""Precisions that ONNX Runtime's CPU provider has no attention for (kernel registry of 1.31)."""

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Option of a session that is given a model from memory: where its weights' file is."""

NO_PREPACKING = "session.disable_prepacking"
"""Option of a session: weights stay as the file has them and are mapped from it, not copied into
the order that products read. Opening 3 GB takes a fifth of a second in place of five to ten, an
encoding up to 1.1 times and a step up to 1.4 times as long (2 cores, AVX2)."""

RETRY = "Check the free memory, or export the model again."


def load(request: LoadRequest) -> LoadedEngine:
    """Open the three graphs on one device.

    `auto` is the CPU, or the GPU for a bundle in a precision that the CPU does not have.

    Raises:
        EngineError: an unknown device, a build of ONNX Runtime without it, a device that does not
            have the precision, a decoder flavour that does not run here, a provider that did not
            start, or a graph that cannot be loaded.
    """
    facts, root, threads = request.manifest, request.root, request.threads
    if facts.decoder_flavour not in CACHES:
        raise EngineError(
            f"ONNX Runtime does not run a decoder of flavour {facts.decoder_flavour!r} here. "
            f"Export with one of: {', '.join(CACHES)}."
        )
    device, reason = _choose(request.device, facts.precision)
    language = facts.language
    form = DecoderForm(facts.decoder_flavour, facts.cache_dtype)
    vision = graphs.vision_encoder(
        facts.vision.image_size, request.variant.tokens_per_tile, language.hidden_size
    )
    config = {NO_PREPACKING: "1"} if request.brief else {}
    encoder = _Vision(
        _open(root / request.variant.vision_encoder, vision, device, threads, config=config)
    )
    model = open_language(
        root / facts.decoder,
        root / facts.embed_tokens,
        language,
        form,
        device,
        threads,
        config=config,
    )
    return LoadedEngine(
        vision=encoder,
        language=model,
        device=device,
        reason=reason,
        capabilities=Capabilities(scores=model.scores, rewinds=True, batches_tiles=True),
    )


def open_language(
    decoder: Path,
    embed: Path,
    facts: LanguageFacts,
    form: DecoderForm,
    device: str = "cpu",
    threads: int | None = None,
    *,
    config: Mapping[str, str] = MappingProxyType({}),
) -> _Language:
    """The language model alone, its decoder with these further options of a session.

    Raises:
        EngineError: a graph cannot be loaded.
    """
    opened = _opened(decoder) if device == "cpu" else None  # where it was tried
    return _Language(
        # A look-up in a table has no work for a second thread.
        _open(embed, graphs.embed_tokens(facts.hidden_size), device, 1),
        _open(decoder, graphs.decoder(facts, form), device, threads, opened, config=config),
        facts,
        form,
        device,
        first_logit=opened.first_logit if opened else None,
    )


def decoder_session(model: LanguageModel) -> InferenceSession:
    """What runs the decoder of a language model that this engine opened, for other uses of it.

    Raises:
        EngineError: another engine opened it.
    """
    if not isinstance(model, _Language):
        raise EngineError(
            f"{type(model).__name__} is no language model of ONNX Runtime. Load one with it."
        )
    return model.decoder


def _opened(decoder: Path) -> OpenDecoder | None:
    with engine_errors(f"reading '{decoder}'", RETRY):
        if decoder.stat().st_size > MAX_BYTES:
            return None
        return keep_positions(decoder.read_bytes())


class _Vision:
    def __init__(self, session: InferenceSession) -> None:
        self._session = session

    def encode(self, pixel_values: Floats) -> Floats:
        with engine_errors("encoding the image with ONNX Runtime", RETRY):
            [features] = self._session.run(["image_features"], {"pixel_values": pixel_values})
        return np.asarray(features, np.float32)  # [tiles, N', D]


class _Language:
    """The KV cache stays on the device from step to step, and logits come to one place."""

    def __init__(
        self,
        embed: InferenceSession,
        decoder: InferenceSession,
        facts: LanguageFacts,
        form: DecoderForm,
        device: str,
        *,
        first_logit: str | None,
    ) -> None:
        from onnxruntime import OrtValue

        self._embed = embed
        self.decoder = decoder
        self._cache: Cache = CACHES[form.flavour](facts, form.cache_dtype, device)
        self._takes_positions = "position_ids" in {one.name for one in decoder.get_inputs()}
        # What is bound stays bound: a step binds its own token and, where it must, the cache.
        self._binding = decoder.io_binding()
        self._logits = np.zeros((1, 1, facts.vocab_size), np.float32)
        self._place = OrtValue.ortvalue_from_numpy(self._logits)
        self._binding.bind_ortvalue_output("logits", self._place)
        self.scores = first_logit is not None
        self._first = np.full(1, -1, np.int64)
        if first_logit is not None:
            # Not `bind_cpu_input`, which knows of no inputs that may be left out.
            start = OrtValue.ortvalue_from_numpy(self._first)
            self._binding.bind_ortvalue_input(first_logit, start)
        self._length = 0

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
        self._append(embeds, 1)
        return np.array(self._logits[0, -1])  # [V], a copy: the next pass writes over it

    def step(self, token: int) -> Floats:
        return self.prefill(self.embed([token]))

    def score(self, tokens: Sequence[int]) -> Floats:
        if not self.scores:
            raise cannot_score()
        embeds = self.embed(tokens)
        # By its declaration the graph has one row of logits, and an output in a place of ours is
        # held against that.
        self._binding.bind_output("logits", "cpu")
        try:
            self._append(embeds, len(tokens))
            scores: Floats = self._binding.get_outputs()[0].numpy()[0]
        finally:
            self._binding.bind_ortvalue_output("logits", self._place)
        return scores

    def _append(self, embeds: Floats, wanted: int) -> None:
        """Run over new tokens; logits of the last `wanted` positions go where they are bound."""
        total, binding = self._length + len(embeds), self._binding
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds[None], np.float32),  # [1, sequence, D]
            "attention_mask": np.ones((1, total), np.int64),
        }
        if self._takes_positions:
            inputs["position_ids"] = np.arange(self._length, total, dtype=np.int64)[None]
        self._first[0] = -wanted
        with engine_errors("decoding with ONNX Runtime", RETRY):
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            self._cache.bind(binding, total)
            self.decoder.run_with_iobinding(binding)
            self._cache.accept(binding)
        self._length = total

    def rewind(self, length: int) -> None:
        check_rewind(length, self._length)
        self._cache.rewind(length)
        self._length = length


def _choose(asked: str, precision: Mapping[str, str]) -> tuple[str, str]:
    """The device, and why."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    needs_cuda = sorted({one for one in precision.values() if one in CUDA_ONLY})
    if asked == "auto":
        if not needs_cuda:
            return "cpu", "the default of this engine; a GPU is used when asked for as 'cuda'"
        asked, reason = "cuda", f"the only device that computes in {needs_cuda[0]}"
    else:
        reason = "asked for"
    if asked not in PROVIDERS:
        raise EngineError(
            f"ONNX Runtime has no device {asked!r}. Choose one of: auto, {', '.join(PROVIDERS)}."
        )
    if needs_cuda and asked != "cuda":
        raise EngineError(
            f"ONNX Runtime computes in {needs_cuda[0]} on a GPU alone. Use device 'cuda', or "
            "export with --precision fp32, int8 or int4."
        )
    if PROVIDERS[asked] not in available:
        raise EngineError(
            f"this build of ONNX Runtime cannot use device {asked!r}. "
            "Replace it: pip uninstall onnxruntime, then pip install 'laco-deploy[onnxruntime-gpu]'"
        )
    return asked, reason


def _open(
    path: Path,
    spec: graphs.GraphSpec,
    device: str,
    threads: int | None,
    opened: OpenDecoder | None = None,
    *,
    config: Mapping[str, str] = MappingProxyType({}),
) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    for name, value in config.items():
        options.add_session_config_entry(name, value)
    with engine_errors(f"loading '{path}' with ONNX Runtime", RETRY):
        if opened is not None:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
        model = path if opened is None else opened.model
        session = onnxruntime.InferenceSession(model, options, providers=[PROVIDERS[device]])
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


__all__ = ["decoder_session", "load", "open_language"]
