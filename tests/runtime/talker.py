"""A language model without weights: what it says next is a function of what stands before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from laco_runtimes.engines.base import Floats, LanguageModel, check_rewind

Rule = Callable[[Sequence[int]], int]
"""The likeliest token after all tokens before."""


class Talker:
    """Its embeddings are the ids themselves, [sequence, 1], and its KV cache is a list of them.

    Args:
        rule: what it says.
        vocabulary: V.
        noise: seed of the logits of all other tokens; None makes them 0.
    """

    def __init__(self, rule: Rule, vocabulary: int = 100, noise: int | None = None) -> None:
        self.rule = rule
        self.vocabulary = vocabulary
        self.noise = noise
        self.cached: list[int] = []
        self.calls: list[tuple[str, int]] = []
        """Name and number of tokens of every call."""

    @property
    def length(self) -> int:
        return len(self.cached)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def embed(self, ids: Sequence[int]) -> Floats:
        return np.asarray(ids, np.float32)[:, None]

    def prefill(self, embeds: Floats) -> Floats:
        return self._append("prefill", [int(value) for value in embeds[:, 0]])

    def step(self, token: int) -> Floats:
        return self._append("step", [token])

    def score(self, tokens: Sequence[int]) -> Floats:
        rows = np.stack([self._append("", [token]) for token in tokens])
        self.calls[-len(tokens) :] = [("score", len(tokens))]
        return rows

    def rewind(self, length: int) -> None:
        check_rewind(length, self.length)
        self.calls.append(("rewind", length))
        del self.cached[length:]

    def _append(self, name: str, tokens: Sequence[int]) -> Floats:
        self.calls.append((name, len(tokens)))
        self.cached += tokens
        return self._logits()

    def _logits(self) -> Floats:
        logits = np.zeros(self.vocabulary, np.float32)
        if self.noise is not None:
            seed = [self.noise, *self.cached]
            logits += np.random.default_rng(seed).normal(size=self.vocabulary).astype(np.float32)
        logits[self.rule(self.cached)] += 3
        return logits


def _is_what_an_engine_is(talker: Talker) -> LanguageModel:
    return talker  # for mypy
