"""The model under test in PyTorch: one tower with every merger of the tables, and Qwen2.5-0.5B.

All cells of an encoder share its tower, and all encoders the language model: weights are random,
as time does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from laco_deploy.model.modeling import LacoProjector
from laco_deploy.model.vision import LacoVisionEncoder
from samples.paper_tables.cells import Cell

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Request:
    """Times of one request, in seconds."""

    vision_s: float
    """Pixels to visual tokens of the language model's width."""
    prefill_s: float
    """Visual tokens and text to the first token of the answer."""
    decode_s: float
    """All further tokens."""
    new_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Of the answer, over the whole request: the paper's 1 / TPS is linear in its VT."""
        return self.new_tokens / (self.vision_s + self.prefill_s + self.decode_s)


class System(Protocol):
    """What can answer for every cell of one encoder."""

    def ask(self, cell: Cell) -> Request:
        """One request on new noise."""


class LanguageModel:
    """A causal language model of random weights that answers greedily.

    Args:
        settings: of a `Qwen2Config`.
        dtype: of weights and activations.
        text_tokens: of the prompt, beside the visual ones.
        new_tokens: length of the answer, at least 1; it does not end early.
    """

    def __init__(
        self, settings: Mapping[str, Any], dtype: torch.dtype, text_tokens: int, new_tokens: int
    ) -> None:
        config = Qwen2Config(**{k: v for k, v in settings.items() if k != "model_type"})
        model: Any = Qwen2ForCausalLM(config)
        self._model = model.to(dtype).eval()
        self._text = torch.randint(0, config.vocab_size, (1, text_tokens))
        self.new_tokens = new_tokens

    def answer(self, visual: Tensor, clock: Clock) -> tuple[float, float]:
        """Seconds of prefill and of decode for visual tokens [1, N', D]."""
        start = clock()
        words = self._model.get_input_embeddings()(self._text)  # [1, T, D]
        prompt = torch.cat([visual, words], dim=1)  # [1, N' + T, D]
        out = self._model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)  # [1, 1]
        first = clock()
        for _ in range(self.new_tokens - 1):
            out = self._model(
                input_ids=token, past_key_values=out.past_key_values, logits_to_keep=1
            )
            token = out.logits[:, -1:].argmax(-1)
        return first - start, clock() - first


class TorchSystem:
    """All cells of one encoder.

    Args:
        cells: of one encoder; their configurations differ in the merger alone.
        language: shared by all.
        dtype: of weights and activations.
        attention: `sdpa` or `eager`, of the tower.
        clock: in seconds.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        language: LanguageModel,
        dtype: torch.dtype,
        attention: str,
        clock: Clock = time.perf_counter,
    ) -> None:
        config = cells[0].config
        self._language, self._clock = language, clock
        self._encoders = {}
        tower: Any = None
        for cell in cells:
            with torch.device("meta"):  # no memory for a tower that is replaced at once
                encoder = LacoVisionEncoder(cell.config)
            if tower is None:
                tower = encoder.tower_type.build(cell.config.vision).to(dtype)
                tower.set_attn_implementation(attention)
            encoder.tower = tower
            _fill(encoder.mergers, dtype)
            self._encoders[cell.name] = encoder.eval()
        with torch.device("meta"):
            projector = LacoProjector(config)
        _fill(projector, dtype)
        self._projector = projector.eval()
        side = config.image_size
        self._shape = (1, config.vision.num_channels, side, side)
        self._dtype = dtype

    @torch.inference_mode()
    def ask(self, cell: Cell) -> Request:
        """See `System`."""
        pixels = torch.randn(self._shape).to(self._dtype)
        start = self._clock()
        visual = self._projector(self._encoders[cell.name](pixels))  # [1, N', D]
        seen = self._clock()
        prefill, decode = self._language.answer(visual, self._clock)
        return Request(seen - start, prefill, decode, self._language.new_tokens)


def _fill(module: nn.Module, dtype: torch.dtype) -> None:
    """Memory and small random weights for a module that was made on the meta device."""
    module.to_empty(device="cpu").to(dtype)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.02)
    for buffer in module.buffers():
        nn.init.zeros_(buffer)


__all__ = ["DTYPES", "LanguageModel", "Request", "System", "TorchSystem"]
