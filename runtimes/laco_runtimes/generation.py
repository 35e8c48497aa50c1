"""The one generation loop of all engines, and token ids back to text while they come."""

from __future__ import annotations

from collections.abc import Container, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from laco_runtimes.engines.base import Floats, LanguageModel
from laco_runtimes.errors import EngineError
from laco_runtimes.lookup import PromptLookup
from laco_runtimes.sampling import Sampler, greedy, log_probabilities
from laco_runtimes.settings import Settings

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability as the model gives it, before any setting of sampling;
    None where it was not asked for."""
    alternatives: tuple[tuple[int, float], ...] | None = None
    """The likeliest tokens in its place, as many as asked for: their ids and the same of them."""


def splice(embeds: Floats, ids: Sequence[int], features: Floats, image_token_id: int) -> Floats:
    """Put visual tokens in the places that a prompt holds for them.

    Args:
        embeds: of the prompt, [sequence, D].
        ids: of the prompt, [sequence].
        features: visual tokens of all tiles, [tiles, N', D].

    Raises:
        EngineError: there are more or fewer visual tokens than places.
    """
    places = np.flatnonzero(np.asarray(ids) == image_token_id)
    visual = features.reshape(-1, features.shape[-1])  # [tiles * N', D]
    if len(visual) != len(places):
        raise EngineError(
            f"the vision encoder gave {len(visual)} visual tokens for {len(places)} places. "
            "Export the model again."
        )
    spliced = embeds.copy()
    spliced[places] = visual
    return spliced


def generate(
    language: LanguageModel,
    embeds: Floats,
    ids: Sequence[int],
    stop_ids: Container[int],
    settings: Settings,
    limit: int,
    *,
    image_token_id: int | None = None,
) -> Generator[Token, None, None]:
    """Prefill, then decode token by token behind what the KV cache already holds.

    The first `next` runs the prefill, every further one a single decoding step; with prompt lookup
    a step may give several tokens, which are then handed out one by one. Closing the iterator runs
    nothing more. Once it has ended or was closed, the KV cache holds the prompt and the tokens that
    were handed out, without the last.

    Args:
        embeds: of what the cache does not hold of the prompt, [sequence, D].
        ids: of the whole prompt, cached or not; for the repetition penalty and prompt lookup.
        stop_ids: ids that end an answer.
        settings: how tokens are picked. Its `stop` and `max_new_tokens` are the caller's business.
        limit: most tokens of the answer, at least 1: what the context has room for is less than
            `max_new_tokens` at times.
        image_token_id: stands in `ids` for visual tokens.

    Yields:
        tokens of the answer; one that ended by itself has its stop id as the last, as in
        `transformers`' `generate`.

    Raises:
        EngineError: the engine failed, or its logits are not numbers.
    """
    sampler = Sampler(settings, ids)
    lookup = None
    if settings.prompt_lookup:
        lookup = PromptLookup(ids, settings.prompt_lookup, image_token_id=image_token_id)
    logits = language.prefill(embeds)[None]  # [1, V]
    draft: list[int] = []
    while True:
        tokens = _picked(sampler, logits, draft, stop_ids, settings)
        if lookup is not None:
            for token in tokens:
                lookup.accept(token.id)
            if draft:
                lookup.learn(len(draft), len(tokens) - 1)
        yield from _handed_out(language, tokens, len(draft))
        limit -= len(tokens)
        last = tokens[-1].id
        if last in stop_ids or not limit:
            return
        draft = lookup.draft(limit - 1) if lookup is not None else []
        # [1 + draft, V]
        logits = language.score([last, *draft]) if draft else language.step(last)[None]


def _picked(
    sampler: Sampler,
    logits: Floats,
    draft: Sequence[int],
    stop_ids: Container[int],
    settings: Settings,
) -> list[Token]:
    """Tokens from [1 + draft, V]: those of the draft that are right, and the one behind them."""
    tokens: list[Token] = []
    for row, guess in zip(logits, [*draft, None], strict=True):
        token = sampler.pick(row)
        tokens.append(_described(row, token, settings.logprobs))
        if token in stop_ids:
            break
        sampler.accept(token)
        if token != guess:
            break
    return tokens


def _handed_out(language: LanguageModel, tokens: Sequence[Token], drafted: int) -> Iterator[Token]:
    """Hand out the tokens of one step, then take from the cache what was drafted in vain.

    Args:
        drafted: tokens at the end of the cache that are a draft.
    """
    taken = 0
    try:
        for token in tokens:
            taken += 1
            yield token
    finally:
        if drafted >= taken:  # a draft that is wrong, or that was not all wanted
            language.rewind(language.length - drafted + taken - 1)


def _described(logits: Floats, token: int, count: int | None) -> Token:
    if count is None:
        return Token(token)
    own, others = log_probabilities(logits, token, count)
    return Token(token, own, tuple(others.items()))


class Detokenizer:
    """Token ids to text, piece by piece, never with half a UTF-8 character.

    The pieces of an answer, joined, are its text; special tokens have none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._sent = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still in parts."""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._sent += len(piece)
        return piece

    def finish(self) -> str:
        """What was held back, without a last character that never became whole."""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return str(text[self._sent :].rstrip(REPLACEMENT))


class StopStrings:
    """Ends a text where a stop string begins, however the text is cut into pieces.

    What may still become a stop string is held back. Of several, the one that is complete first
    counts, and of these the longest.

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, piece: str) -> str:
        """The text that is certain now; after the end of the text always empty."""
        if not self._stops or self.found is not None:
            return "" if self._stops else piece
        text = self._held + piece
        ends = [(start + len(s), start, s) for s in self._stops if (start := text.find(s)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


__all__ = ["Detokenizer", "StopStrings", "Token", "generate", "greedy", "splice"]
