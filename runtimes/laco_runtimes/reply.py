"""What a chat gives back: the text, its tokens, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from laco_runtimes.display import reply_line, reply_markdown

if TYPE_CHECKING:
    from laco_runtimes.generation import Token

StopReason = Literal["stop", "length", "stop_string", "stopped", "cancelled"]
"""`stop`: the model ended its answer; `length`: the token limit or the context did; `stop_string`:
a text of `stop` did; `stopped`: the reader did, and keeps it; `cancelled`: the reader did, and a
history does not have the turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Wall-clock times of one request, in milliseconds."""

    preprocess_ms: float
    """Images to the squares the encoder sees, and turns to what fits in the context."""
    vision_encode_ms: float
    """Pixels to visual tokens, all images of the turn; about 0 for none, or ones seen before."""
    embed_ms: float
    """KV cache cut to what can be kept; ids to embeddings, visual tokens put in their places."""
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
    """Ids of the answer; the stop id is the last where `stop_reason` is `stop`, and those of the
    stop string where it is `stop_string`."""
    stop_reason: StopReason
    prompt_tokens: int
    """Tokens of the prompt, visual ones among them."""
    visual_tokens: int
    """Of all images in the dialogue."""
    timings: Timings
    cached_tokens: int = 0
    """Tokens of the prompt that were in the KV cache from before and were not prefilled again."""
    logprobs: tuple[Token, ...] | None = None
    """Each token with its log-probability and alternatives, where `logprobs` asked for them."""

    @property
    def new_tokens(self) -> int:
        """Length of the answer in tokens."""
        return len(self.tokens)

    @property
    def prefilled_tokens(self) -> int:
        """Tokens of the prompt that were prefilled."""
        return self.prompt_tokens - self.cached_tokens

    def summary(self) -> str:
        """Counts and times in one line, for a terminal."""
        return reply_line(self)

    def _repr_markdown_(self) -> str:
        """For a notebook; nothing that the model says is loaded or run."""
        return reply_markdown(self)

    def __str__(self) -> str:
        return self.text


__all__ = ["Reply", "StopReason", "Timings"]
