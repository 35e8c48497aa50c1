"""PyTorch as an engine: a checkpoint folder, run as it is. The reference for all other engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from laco_deploy import __version__
from laco_deploy.model.checkpoint import WEIGHT_FILES, Checkpoint, load_checkpoint
from laco_deploy.model.config import LacoConfig
from laco_deploy.model.manifest_facts import language_facts, merger_facts, vision_facts
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_runtimes.engines.base import (
    Capabilities,
    Floats,
    LoadedEngine,
    check_rewind,
    engine_errors,
)
from laco_runtimes.errors import ArgumentError, EngineError, MissingPackageError
from laco_runtimes.manifest import (
    FORMAT_VERSION,
    MAIN_VARIANT,
    BundleFacts,
    MergerFacts,
    Variant,
)
from laco_runtimes.sources import Source, SourceRequest

TARGET = "torch"
WEIGHTS = WEIGHT_FILES[0]
RETRY = "Check the free memory, or use another device."
CAPABILITIES = Capabilities(scores=True, rewinds=True, batches_tiles=True)


def open_checkpoint_source(request: SourceRequest) -> Source:
    """Load a checkpoint in 32-bit floats, ready to run.

    Baselines of the model (`laco_deploy.baselines`) are variants of it as well.

    Raises:
        CheckpointNotFoundError, CheckpointError: as `load_checkpoint`.
        ArgumentError: an unknown variant, or CPU threads asked of another device.
        EngineError: no such device, or no room on it.
        MissingPackageError: a baseline is asked for, and the extra `export` is not installed.
    """
    device, reason = _choose_device(request.device, request.threads)
    checkpoint = load_checkpoint(request.root)
    model = checkpoint.model.float()
    vision: Any = model
    variants = [_as_trained(checkpoint.config)]
    if request.variant != MAIN_VARIANT:
        variant, vision = _baseline(request.variant, checkpoint)
        variants.append(variant)
    with engine_errors(f"moving the model to {device} with PyTorch", RETRY):
        model.to(device)
        vision.to(device)
    newline = model.model.image_newline
    return Source(
        facts=_facts(checkpoint, tuple(variants)),
        tokenizer=checkpoint.tokenizer_path,
        variant=variants[-1],
        engine=LoadedEngine(
            vision=_Vision(vision.eval(), device, request.threads),
            language=_Language(model, device, request.threads),
            device=str(device),
            reason=reason,
            capabilities=CAPABILITIES,
        ),
        newline=None if newline is None else newline.detach().cpu().numpy(),
        unverified=None,
    )


def _choose_device(asked: str, threads: int | None) -> tuple[torch.device, str]:
    present = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    name = asked.lower()
    if name == "auto":
        if threads is not None:
            return torch.device("cpu"), "CPU threads were asked for"
        if len(present) > 1:
            return torch.device(present[1]), "a GPU that PyTorch can use"
        return torch.device("cpu"), "PyTorch sees no GPU here"
    if name == "cuda" and len(present) > 1:
        name = present[1]
    if name not in present:
        raise EngineError(
            f"PyTorch sees no device {asked!r} here. Choose one of: auto, {', '.join(present)}."
        )
    if threads is not None and name != "cpu":
        raise ArgumentError(f"threads are for the CPU, not {name}. Leave them out, or use cpu.")
    return torch.device(name), "asked for"


def _baseline(name: str, checkpoint: Checkpoint) -> tuple[Variant, torch.nn.Module]:
    try:
        from laco_deploy.baselines import BASELINES, baseline_encoder
    except ModuleNotFoundError as error:  # they are described as the exporter wants them
        raise MissingPackageError((error.name or "onnx").partition(".")[0], "export") from None

    if name not in BASELINES:
        known = ", ".join([MAIN_VARIANT, *BASELINES])
        raise ArgumentError(f"a checkpoint has no variant {name!r}. Choose one of: {known}.")
    row = BASELINES[name](checkpoint.config)
    variant = _variant(name, row.mergers, row.merged_grid, latency_only=True)
    return variant, baseline_encoder(name, checkpoint.config, checkpoint.model)


def _as_trained(config: LacoConfig) -> Variant:
    grid = config.merged_grid
    return _variant(MAIN_VARIANT, merger_facts(config), grid, latency_only=False)


def _variant(
    name: str, mergers: tuple[MergerFacts, ...], grid: tuple[int, int], *, latency_only: bool
) -> Variant:
    return Variant(
        name=name,
        mergers=mergers,
        merged_grid=grid,
        vision_encoder=WEIGHTS,
        latency_only=latency_only,
    )


def _facts(checkpoint: Checkpoint, variants: tuple[Variant, ...]) -> BundleFacts:
    """What the manifest of a bundle would say of the model."""
    config = checkpoint.config
    return BundleFacts(
        format_version=FORMAT_VERSION,
        created_by=f"laco-deploy {__version__}",
        target=TARGET,
        precision=dict.fromkeys(("vision_encoder", "embed_tokens", "decoder"), "fp32"),
        language=language_facts(config),
        vision=vision_facts(config),
        embed_tokens=WEIGHTS,
        decoder=WEIGHTS,
        preprocessing=checkpoint.preprocessing,
        layout=config.image_layout,
        prompt=checkpoint.template,
        variants=variants,
        parity=None,
        unverified="this is the model itself, which exports are compared with",
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


@contextmanager
def _running(doing: str, threads: int | None) -> Iterator[None]:
    """Without gradients, with so many CPU threads, and with our own errors."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)  # of this process: put back, for whoever else uses PyTorch
    try:
        with engine_errors(f"{doing} with PyTorch", RETRY), torch.inference_mode():
            yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


class _Vision:
    def __init__(self, encoder: Any, device: torch.device, threads: int | None) -> None:
        self._encoder = encoder
        self._device = device
        self._threads = threads

    def encode(self, pixel_values: Floats) -> Floats:
        with _running("encoding the image", self._threads):
            tiles = torch.tensor(pixel_values, device=self._device)
            return _floats(self._encoder.get_image_features(tiles))  # [tiles, N', D]


class _Language:
    """The language model with a KV cache of transformers."""

    def __init__(
        self, model: LacoForConditionalGeneration, device: torch.device, threads: int | None
    ) -> None:
        self._model = model
        self._device = device
        self._threads = threads
        self._cache = DynamicCache()
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def embed(self, ids: Sequence[int]) -> Floats:
        with _running("embedding tokens", self._threads):
            return _floats(self._look_up(ids))  # [sequence, D]

    def prefill(self, embeds: Floats) -> Floats:
        with _running("decoding", self._threads):
            values = torch.tensor(embeds, dtype=torch.float32, device=self._device)
            logits: Floats = self._append(values, keep=1)[0]  # [V]
            return logits

    def step(self, token: int) -> Floats:
        logits: Floats = self.score([token])[0]
        return logits

    def score(self, tokens: Sequence[int]) -> Floats:
        with _running("decoding", self._threads):
            return self._append(self._look_up(tokens), keep=len(tokens))

    def rewind(self, length: int) -> None:
        check_rewind(length, self._length)
        if length == 0:
            self._cache = DynamicCache()
        elif length < self._length:
            self._cache.crop(length - self._length)
        self._length = length

    def _look_up(self, ids: Sequence[int]) -> Tensor:
        indices = torch.tensor(list(ids), dtype=torch.long, device=self._device)
        return self._model.get_input_embeddings()(indices)  # type: ignore[no-any-return]

    def _append(self, embeds: Tensor, keep: int) -> Floats:
        """Append [sequence, D]; logits of the last `keep` positions, [keep, V]."""
        cache, length = self._cache, self._length
        self._cache, self._length = DynamicCache(), 0  # an error leaves layers of other lengths
        output = self._model(
            inputs_embeds=embeds[None], past_key_values=cache, use_cache=True, logits_to_keep=keep
        )
        logits = _floats(output.logits[0])
        self._cache, self._length = cache, length + len(embeds)
        return logits


def _floats(tensor: Tensor) -> Floats:
    return tensor.float().cpu().numpy()


__all__ = ["open_checkpoint_source"]
