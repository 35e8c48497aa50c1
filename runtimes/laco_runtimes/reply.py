"""What a chat gives back: the text, its tokens, and where the time went."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal, Self

from laco_runtimes.errors import ArgumentError

StopReason = Literal["stop", "length"]
"""`stop`: the model ended its answer; `length`: the token limit or the context did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Wall-clock times of one request, in milliseconds."""

    preprocess_ms: float
    """Image to pixel values, and prompt to token ids."""
    vision_encode_ms: float
    """Pixel values to visual tokens, all images; about 0 without an image."""
    embed_ms: float
    """Token ids to embeddings, visual tokens put in their places."""
    prefill_ms: float
    """Embeddings to the first token."""
    ttft_ms: float
    """Time to first token: request to the first token; the four above added up."""
    tpot_ms: float | None
    """Time per output token: mean of all tokens after the first; None when there is only one."""
    request_ms: float
    """Request to the last token. Holds the time a reader of a stream takes between two pieces."""
    tokens_per_second: float
    """New tokens over `request_ms`: throughput as one user sees it, image included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer. Prints as its text."""

    text: str
    tokens: tuple[int, ...]
    """Ids of the answer; the stop id is the last where `stop_reason` is `stop`."""
    stop_reason: StopReason
    prompt_tokens: int
    """Tokens of the prompt, visual ones among them."""
    visual_tokens: int
    timings: Timings

    @property
    def new_tokens(self) -> int:
        """Length of the answer in tokens."""
        return len(self.tokens)

    def summary(self) -> str:
        """Counts and times in one line, for a terminal."""
        times = self.timings
        per_token = "" if times.tpot_ms is None else f", {times.tpot_ms:.1f} ms per token after it"
        return (
            f"{self.visual_tokens} visual of {self.prompt_tokens} prompt tokens, "
            f"first token after {times.ttft_ms:.0f} ms "
            f"(vision {times.vision_encode_ms:.0f}, prefill {times.prefill_ms:.0f})"
            f"{per_token}, {self.new_tokens} new tokens in {times.request_ms:.0f} ms"
        )

    def __str__(self) -> str:
        return self.text


class ReplyStream(Iterator[str]):
    """The pieces of an answer as they come; `reply` holds the whole once they are all read.

    `close()`, leaving a `with` block, or dropping the stream ends it within one token.
    """

    def __init__(self, pieces: Generator[str, None, Reply]) -> None:
        self._pieces = pieces
        self._reply: Reply | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._reply = end.value or self._reply
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop generating. Does nothing on a stream that has ended."""
        self._pieces.close()

    @property
    def reply(self) -> Reply:
        """The whole answer, with its counts and times.

        Raises:
            ArgumentError: the stream was not read to its end.
        """
        if self._reply is None:
            raise ArgumentError(
                "the answer is not complete. Read the stream to its end, then ask for its reply."
            )
        return self._reply


__all__ = ["Reply", "ReplyStream", "StopReason", "Timings"]
