"""An engine without a model and a tokenizer without merges."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from laco_runtimes.engines.base import (
    Floats,
    LanguageModel,
    LoadedEngine,
    LoadRequest,
    VisionEncoder,
)
from laco_runtimes.errors import EngineError

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>")
IMAGE_TOKEN = "<|image_pad|>"
WIDTH = 4
CONTEXT = 400
"""Bytes are tokens here, so the system turn alone takes 40."""


def byte_tokenizer(*, special: bool = True) -> Tokenizer:
    """One token per byte, and the special tokens of ChatML behind them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=special) for token in SPECIAL_TOKENS])
    return tokenizer


@dataclass
class FakeEngine:
    """Both Protocols at once. Says `answer`, token by token, and writes down what it is asked."""

    answer: list[int] = field(default_factory=list)
    cached: list[Floats] = field(default_factory=list)
    """Embeddings in the "KV cache", one per token."""
    calls: list[str] = field(default_factory=list)
    fail_in: str = ""
    on_call: Callable[[str], None] = lambda name: None
    requests: list[LoadRequest] = field(default_factory=list)
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def _called(self, name: str) -> None:
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two requests run at the same time")
        try:
            self.calls.append(name)
            self.on_call(name)
            if self.fail_in == name:
                raise EngineError(f"{name} failed. This is a test.")
        finally:
            self._busy.release()

    def encode(self, pixel_values: Floats) -> Floats:
        self._called("encode")
        count = self.requests[-1].variant.tokens_per_tile
        # Token i of tile t is -(100 t + i) - 1, so that places and order can be told.
        tiles = len(pixel_values)
        numbers = 100 * np.arange(tiles)[:, None] + np.arange(count)  # [tiles, N']
        return np.repeat(-1.0 - numbers[..., None], WIDTH, axis=-1).astype(np.float32)

    @property
    def length(self) -> int:
        return len(self.cached)

    def embed(self, ids: Sequence[int]) -> Floats:
        self._called("embed")
        return np.repeat(np.asarray(ids, np.float32)[:, None], WIDTH, axis=1)

    def prefill(self, embeds: Floats) -> Floats:
        self._called("prefill")
        self.cached.extend(embeds)
        self._said = 0
        return self._logits()

    def step(self, token: int) -> Floats:
        self._called("step")
        self.cached.append(np.full(WIDTH, token, np.float32))
        self._said += 1
        assert token == self.answer[self._said - 1]
        return self._logits()

    def score(self, tokens: Sequence[int]) -> Floats:
        raise EngineError("this engine has logits of the last position alone. This is a test.")

    def rewind(self, length: int) -> None:
        self._called("rewind")
        del self.cached[length:]

    def _logits(self) -> Floats:
        logits = np.zeros(300, np.float32)
        logits[self.answer[self._said]] = 1
        return logits

    def load(self, request: LoadRequest) -> LoadedEngine:
        self.requests.append(request)
        device = "toaster" if request.device == "auto" else request.device
        return LoadedEngine(vision=self, language=self, device=device, reason="nothing else here")


def _is_what_an_engine_is(fake: FakeEngine) -> tuple[VisionEncoder, LanguageModel]:
    return fake, fake  # for mypy
