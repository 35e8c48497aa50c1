"""How far an answer has come, and where its time went."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from laco_runtimes.context import Prompt
from laco_runtimes.generation import Token
from laco_runtimes.reply import Reply, StopReason, Timings
from laco_runtimes.settings import Settings

Stage = Literal["preprocess_ms", "vision_encode_ms", "embed_ms"]


class Stopwatch:
    """Wall-clock time of a request, in laps.

    Args:
        ahead: milliseconds that were spent on a stage before the request began.
    """

    def __init__(self, **ahead: float) -> None:
        self.stages_ms: dict[Stage, float] = {
            stage: ahead.get(stage, 0.0)
            for stage in ("preprocess_ms", "vision_encode_ms", "embed_ms")
        }
        self.token_ms: list[float] = []
        self._last = time.perf_counter_ns()
        self._start = self._last - round(sum(ahead.values()) * 1e6)
        self.request_ms = 0.0
        """From the start to the last token."""

    def lap(self, stage: Stage) -> None:
        """The time since the last lap was spent on a stage."""
        self.stages_ms[stage] += self._lap_ms()

    def token(self) -> None:
        """The time since the last lap was spent on a token."""
        self.token_ms.append(self._lap_ms())
        self.request_ms = (self._last - self._start) / 1e6

    def skip(self) -> None:
        """The time since the last lap was spent on something else."""
        self._lap_ms()

    @property
    def timings(self) -> Timings:
        """All of it, once there is a token."""
        return Timings(
            **self.stages_ms,
            prefill_ms=self.token_ms[0],
            ttft_ms=sum(self.stages_ms.values()) + self.token_ms[0],
            tpot_ms=fmean(self.token_ms[1:]) if len(self.token_ms) > 1 else None,
            request_ms=self.request_ms,
            tokens_per_second=1000 * len(self.token_ms) / max(self.request_ms, 1e-6),
        )

    def _lap_ms(self) -> float:
        now = time.perf_counter_ns()
        lap, self._last = now - self._last, now
        return lap / 1e6


@dataclass(slots=True)
class Progress:
    """An answer under way."""

    prompt: Prompt
    cached: int
    """Tokens of the prompt that were in the KV cache before."""
    watch: Stopwatch
    tokens: list[Token] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    end: StopReason = "length"

    def add(self, token: Token) -> None:
        """The next token has come."""
        self.watch.token()
        self.tokens.append(token)

    @property
    def ids(self) -> list[int]:
        """Of the answer so far."""
        return [token.id for token in self.tokens]

    @property
    def text(self) -> str:
        """The answer so far, without what is held back."""
        return "".join(self.pieces)

    def reply(self, settings: Settings) -> Reply:
        """The answer as it is given back."""
        return Reply(
            text=self.text,
            tokens=tuple(self.ids),
            stop_reason=self.end,
            prompt_tokens=len(self.prompt.ids),
            visual_tokens=sum(visual.tokens for visual in self.prompt.visuals),
            cached_tokens=self.cached,
            logprobs=None if settings.logprobs is None else tuple(self.tokens),
            timings=self.watch.timings,
        )


__all__ = ["Progress", "Stage", "Stopwatch"]
