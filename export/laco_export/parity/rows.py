"""Answers of the fp32 decoder that grow together, as rows of one batch.

A step reads all weights, for one token as for eight: at full size 0.13 s for one, 0.4 s for eight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from laco_export.protocols import Floats
from laco_runtimes.engines.base import engine_errors
from laco_runtimes.engines.onnxruntime import RETRY
from laco_runtimes.graphs import cache_names
from laco_runtimes.manifest import LanguageFacts

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ROWS = 8
"""Answers that grow together: each brings its KV cache, which every step copies."""


class Rows:
    """The rows of one batch, until `clear`.

    Args:
        decoder: runs a graph of flavour `stateful`.
        facts: of the language model.
    """

    def __init__(self, decoder: InferenceSession, facts: LanguageFacts) -> None:
        self._session = decoder
        self._facts = facts
        self._past = cache_names(facts.layers, "past_key_values")
        self._outputs = ["logits", *cache_names(facts.layers, "present")]
        self.clear()

    def __len__(self) -> int:
        return len(self._lengths)

    def clear(self) -> None:
        """Begin anew, without a row."""
        self._lengths: list[int] = []
        """Tokens of each row."""
        self._caches: list[list[Floats]] = []
        """Of each row, [1, K, tokens, d] for every name; one of all rows behind the first step."""

    def add(self, embeds: Floats) -> Floats:
        """One more row: a prompt [sequence, D]. Logits of what comes behind it, [V].

        Raises:
            ValueError: the rows have made steps already.
        """
        if len(self._caches) < len(self):
            raise ValueError("rows that have made steps take no further one. Clear them first.")
        facts, length = self._facts, len(embeds)
        empty = np.zeros((1, facts.kv_heads, 0, facts.head_dim), np.float32)
        logits, cache = self._run(
            embeds[None],
            np.ones((1, length), np.int64),
            np.arange(length)[None],
            [empty] * len(self._past),
        )
        self._lengths.append(length)
        self._caches.append(cache)
        return np.asarray(logits[0], np.float32)

    def step(self, embeds: Floats) -> Floats:
        """One token for every row, [rows, D]. Logits of what comes behind it, [rows, V]."""
        if len(self._caches) == len(self) > 1:
            self._caches = [self._joined()]
        [cache] = self._caches
        slots, lengths = cache[0].shape[2], np.asarray(self._lengths)
        # A shorter row stands at the end of its slots. One that is done goes on beyond the model's
        # last position, and nobody reads what it says.
        mask = np.arange(slots + 1) >= slots - lengths[:, None]
        positions = np.minimum(lengths, self._facts.max_positions - 1)[:, None]
        logits, cache = self._run(embeds[:, None], mask.astype(np.int64), positions, cache)
        self._caches = [cache]
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def _joined(self) -> list[Floats]:
        longest = max(self._lengths)
        return [
            np.concatenate(
                [
                    np.pad(one, ((0, 0), (0, 0), (longest - one.shape[2], 0), (0, 0)))
                    for one in parts
                ]
            )
            for parts in zip(*self._caches, strict=True)
        ]

    def _run(
        self,
        embeds: Floats,
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
        cache: list[Floats],
    ) -> tuple[Floats, list[Floats]]:
        inputs = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
        with engine_errors("decoding with ONNX Runtime", RETRY):
            logits, *after = self._session.run(
                self._outputs, {**inputs, **dict(zip(self._past, cache, strict=True))}
            )
        return logits[:, 0], after


__all__ = ["ROWS", "Rows"]
