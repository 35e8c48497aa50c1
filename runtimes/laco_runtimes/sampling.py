"""Which token comes next: greedy, or drawn from what temperature, top-k, top-p and min-p leave.

A vocabulary has 151,936 tokens and a step takes some 10 ms, so nothing here sorts it: the few
tokens that can be drawn are found first. Shapes: V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.errors import EngineError
from laco_runtimes.settings import Settings

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

HEAD = 256
"""Tokens that are looked at first; they hold what is drawn unless the model has no idea."""
GROWTH = 32
"""Factor by which more are looked at where they do not."""
GROUP = 64
"""Tokens of which only the likeliest is compared at first."""
ROUNDING = 1e-4
"""More than sums of float32 are off by here, as a part of them."""
SMALLEST = np.float32(-80)
"""exp of less is no normal number of 32 bits, which is slow, and adds nothing to a sum."""


class Sampler:
    """Picks the tokens of one answer.

    Args:
        settings: of the request.
        prompt_ids: all tokens before the answer, for the repetition penalty.
    """

    def __init__(self, settings: Settings, prompt_ids: Collection[int]) -> None:
        self._settings = settings
        self._seen: Ids = np.unique(np.fromiter(prompt_ids, np.intp, len(prompt_ids)))
        self._random = None if settings.greedy else np.random.default_rng(settings.seed)

    def accept(self, token: int) -> None:
        """Take a token into the answer."""
        if self._settings.repetition_penalty != 1:
            place = int(np.searchsorted(self._seen, token))
            if place == len(self._seen) or self._seen[place] != token:
                self._seen = np.insert(self._seen, place, token)

    def pick(self, logits: Floats) -> int:
        """The next token from its logits, [V]; the same state and random number, the same token.

        Raises:
            EngineError: the logits are not numbers.
        """
        penalty = self._settings.repetition_penalty
        if penalty != 1:
            logits = logits.copy()
            seen = logits[self._seen]
            logits[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._random is None:
            return greedy(logits)
        return self._draw(logits, _best(logits), self._random.random())

    def _draw(self, logits: Floats, best: float, chance: float) -> int:
        temperature = self._settings.temperature
        size, among = self._settings.top_k or HEAD, len(logits)
        if self._settings.top_k:
            among = min(size, among)  # the others have no share in the probabilities
        while True:
            size = min(size, among)
            ids = likeliest(logits, size)
            weights = np.exp((logits[ids].astype(np.float64) - best) / temperature)
            for low, high in _rests(logits, weights, among - size, best, temperature):
                place = self._place(weights, high, chance)
                if place is not None and place == self._place(weights, low, chance):
                    return int(ids[place])
            size *= GROWTH

    def _place(self, weights: NDArray[np.float64], rest: float, chance: float) -> int | None:
        """Which token is drawn; None where it may be none of these.

        Args:
            weights: of the likeliest tokens, falling from 1.
            rest: what all others weigh together.
            chance: from 0 to below 1.
        """
        top_p, min_p = self._settings.top_p, self._settings.min_p
        sums = np.cumsum(weights)
        kept = float(sums[-1]) + rest
        if top_p < 1:
            count = int(np.searchsorted(sums, top_p * kept)) + 1
            if count > len(sums):
                return None
            kept = float(sums[count - 1])
        if min_p > 0:
            count = int(np.count_nonzero(weights >= min_p))
            if count == len(sums) and rest and top_p == 1:
                return None
            kept = min(kept, float(sums[count - 1]))
        place = int(np.searchsorted(sums, chance * kept, side="right"))
        if place < len(sums):
            return place
        return None if rest else len(sums) - 1  # chance * kept was rounded up


def greedy(logits: Floats) -> int:
    """The likeliest token; the lowest id among equals.

    Raises:
        EngineError: the logits are not numbers.
    """
    token = int(np.argmax(logits))
    if np.isnan(logits[token]):  # argmax of anything with a NaN in it is that NaN
        raise _not_numbers("NaN")
    return token


def likeliest(logits: Floats, count: int) -> Ids:
    """Ids of the `count` largest of [V], falling; the lower id first among equals."""
    ids: Ids = np.flatnonzero(logits >= _threshold(logits, count))
    order = np.argsort(-logits[ids], kind="stable")
    return ids[order[:count]]


def log_probabilities(logits: Floats, token: int, count: int) -> tuple[float, dict[int, float]]:
    """Natural logarithms of probabilities as the model gives them, before any setting of sampling.

    Args:
        logits: [V].
        token: the one that was picked.
        count: of likeliest tokens to give beside it.

    Returns:
        that of `token`, and those of the `count` likeliest ones, falling.

    Raises:
        EngineError: the logits are not numbers.
    """
    best = _best(logits)
    log_sum = best + math.log(_mass(logits, best, 1.0))
    others = likeliest(logits, min(count, len(logits))) if count else ()
    return float(logits[token]) - log_sum, {int(i): float(logits[i]) - log_sum for i in others}


def _rests(
    logits: Floats, weights: NDArray[np.float64], left: int, best: float, temperature: float
) -> Iterator[tuple[float, float]]:
    """Bounds of what the tokens outside the head weigh together, closer and closer.

    The next ones cost more, and are worked out only where these leave a draw open.

    Args:
        logits: [V].
        weights: of the head, falling from 1.
        left: number of tokens outside of it.
        best: the largest logit.
        temperature: logits are divided by it.
    """
    if not left:
        yield 0.0, 0.0
        return
    last = float(weights[-1])
    yield 0.0, left * last
    groups = len(logits) // GROUP
    powers = (_group_maxima(logits, groups) - np.float32(best)) / np.float32(temperature)
    within = np.minimum(np.exp(np.maximum(powers, SMALLEST)), np.float32(last)).sum()
    yield 0.0, (GROUP * float(within) + len(logits) % GROUP * last) * (1 + ROUNDING)
    rest = max(_mass(logits, best, temperature) - float(weights.sum()), 0.0)
    yield rest, rest


def _threshold(logits: Floats, count: int) -> np.float32:
    """A value that `count` logits reach, and usually not many more.

    The `count` largest of the largest of each group are `count` of the logits.
    """
    groups = len(logits) // GROUP
    if count > groups:
        return np.partition(logits, len(logits) - count)[len(logits) - count]  # type: ignore[no-any-return]
    largest = _group_maxima(logits, groups)
    return np.partition(largest, groups - count)[groups - count]  # type: ignore[no-any-return]


def _group_maxima(logits: Floats, groups: int) -> Floats:
    """[groups]; a group is every groups-th token, since maxima over rows are the faster ones."""
    return logits[: groups * GROUP].reshape(GROUP, groups).max(axis=0)  # type: ignore[no-any-return]


def _mass(logits: Floats, best: float, temperature: float) -> float:
    """Sum of exp((logits - best) / temperature); at least 1."""
    powers = np.subtract(logits, np.float32(best))
    if temperature != 1:
        powers /= np.float32(temperature)
    np.maximum(powers, SMALLEST, out=powers)
    return float(np.exp(powers, out=powers).sum())


def _best(logits: Floats) -> float:
    best = float(logits.max())
    if not math.isfinite(best):
        raise _not_numbers(str(best))
    return best


def _not_numbers(what: str) -> EngineError:
    return EngineError(
        f"the decoder's logits are not numbers ({'NaN' if what == 'nan' else what}). Export with "
        "--precision fp32, or use another device."
    )


__all__ = ["Sampler", "greedy", "likeliest", "log_probabilities"]
