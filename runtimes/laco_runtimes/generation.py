"""The one generation loop of all engines, and token ids back to text while they come."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from laco_runtimes.engines.base import Floats, LanguageModel
from laco_runtimes.errors import EngineError

Select = Callable[[Floats], int]
"""Picks the next token from its logits, [V]."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


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


def greedy(logits: Floats) -> int:
    """The likeliest token; the lowest id among equals.

    Raises:
        EngineError: the logits are not numbers.
    """
    token = int(np.argmax(logits))
    if np.isnan(logits[token]):  # argmax of anything with a NaN in it is that NaN
        raise EngineError(
            "the decoder's logits are not numbers (NaN). Export with --precision fp32, or use "
            "another device."
        )
    return token


def generate(
    language: LanguageModel,
    embeds: Floats,
    stop: Container[int],
    max_new_tokens: int,
    select: Select = greedy,
) -> Iterator[int]:
    """Prefill, then decode token by token behind what the KV cache already holds.

    The first `next` runs the prefill, every further one a single decoding step; closing the
    iterator runs nothing more.

    Args:
        embeds: of the new part of the prompt, [sequence, D].
        stop: ids that end an answer.
        max_new_tokens: at least 1.

    Yields:
        ids of the answer; one that ended by itself has its stop id as the last, as in
        `transformers`' `generate`.
    """
    logits = language.prefill(embeds)
    for left in reversed(range(max_new_tokens)):
        token = select(logits)
        yield token
        if token in stop or not left:
            return
        logits = language.step(token)


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


__all__ = ["Detokenizer", "Select", "generate", "greedy", "splice"]
