"""An engine whose every answer depends on all that stands in its KV cache, and on nothing else."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from laco_runtimes.engines.base import Capabilities, Floats, LoadedEngine, LoadRequest, check_rewind
from laco_runtimes.errors import EngineError
from tests.runtime.fakes import WIDTH, FakeEngine

VOCABULARY = 260
LETTERS = slice(64, 90)
"""`a` to `z` of the byte tokenizer, which begins with `!`."""
STOP = 258
"""`<|im_end|>` of the byte tokenizer."""
STOPS_ONE_IN = 12


@dataclass
class HashEngine(FakeEngine):
    """Says printable bytes that are a checksum of the cache, and stops about every 12 tokens.

    A KV cache with one wrong or missing entry, or an image in another's place, gives another
    answer. `answer` is not used.
    """

    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(scores=True, rewinds=True, batches_tiles=True)
    )
    prefilled: list[int] = field(default_factory=list)
    """Tokens of each prefill."""
    tiles: list[int] = field(default_factory=list)
    """Tiles of each pass of the encoder."""
    lowest_stop: int = 0
    """No stop before the cache holds so many tokens."""

    def encode(self, pixel_values: Floats) -> Floats:
        self._called("encode")
        self.tiles.append(len(pixel_values))
        count = self.requests[-1].variant.tokens_per_tile
        sums = [zlib.crc32(tile.tobytes()) % 10_000 for tile in pixel_values]
        numbers = np.asarray(sums)[:, None] + np.arange(count) / 16  # [tiles, N']
        return np.repeat(-1.0 - numbers[..., None], WIDTH, axis=-1).astype(np.float32)

    def prefill(self, embeds: Floats) -> Floats:
        self._called("prefill")
        self.prefilled.append(len(embeds))
        self.cached.extend(np.array(embeds))
        return self._logits()

    def step(self, token: int) -> Floats:
        self._called("step")
        self.cached.append(np.full(WIDTH, token, np.float32))
        return self._logits()

    def score(self, tokens: Sequence[int]) -> Floats:
        self._called("score")
        rows = []
        for token in tokens:
            self.cached.append(np.full(WIDTH, token, np.float32))
            rows.append(self._logits())
        return np.stack(rows)

    def rewind(self, length: int) -> None:
        self._called("rewind")
        check_rewind(length, len(self.cached))
        if 0 < length < len(self.cached) and not self.capabilities.rewinds:
            raise EngineError("this cache cannot be shortened. This is a test.")
        del self.cached[length:]

    def _logits(self) -> Floats:
        checksum = zlib.crc32(np.asarray(self.cached, np.float32).tobytes())
        random = np.random.default_rng(checksum)
        logits = np.full(VOCABULARY, -20, np.float32)
        logits[LETTERS] = random.normal(size=26)
        if checksum % STOPS_ONE_IN == 0 and len(self.cached) >= self.lowest_stop:
            logits[STOP] = 20
        return logits

    def load(self, request: LoadRequest) -> LoadedEngine:
        self.requests.append(request)
        return LoadedEngine(self, self, "abacus", "it was there", self.capabilities)


__all__ = ["STOP", "HashEngine"]
