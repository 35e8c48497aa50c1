"""How an answer is made: its length, how its tokens are picked, and what ends it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from laco_runtimes.errors import ArgumentError

MAX_LOGPROBS = 100
"""Most alternatives that are given with a token; each costs a place in every token's result."""
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1000
"""Characters of one stop string; so much text may have to be held back."""
MAX_LOOKUP = 64
"""Longest draft of prompt lookup; a longer one costs more than it wins."""
MAX_SEED = 2**64 - 1
MIN_TEMPERATURE = 0.001
"""Below it, logits that differ at all are as far apart as those of a greedy answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one request; the default is greedy: the same question, the same answer.

    Penalty, temperature, top-k, top-p and min-p apply in this order, each to what the one before
    it left, as the logits processors of `transformers` do.

    Raises:
        ArgumentError: a value out of range or of another type; the message names the field.
    """

    max_new_tokens: int = 128
    """Longest answer; the context may end it sooner."""
    temperature: float = 0.0
    """Logits are divided by it; 0 is greedy, whatever the other settings of sampling say."""
    top_k: int = 0
    """Sample among the so many likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Sample among the fewest tokens that together have this probability; 1 is all."""
    min_p: float = 0.0
    """Sample among tokens at least so likely, as a part of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Logits of tokens of the prompt and the answer are divided by it where positive and multiplied
    where negative (CTRL, Keskar et al. 2019, section 4.1); 1 is none."""
    seed: int | None = None
    """The same seed gives the same text on the same engine; None takes another every time."""
    stop: str | tuple[str, ...] = ()
    """Texts that end an answer; they and what follows are left out. Always a tuple once made."""
    logprobs: int | None = None
    """Give the log-probability of each token, and of so many likeliest ones beside it."""
    prompt_lookup: int = 0
    """Most tokens to guess per step from what the prompt and the answer said before; 0 is off."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _as_tuple(self.stop))
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if not rule.holds(value):
                raise ArgumentError(f"{name} is {_shown(value)}. Give {rule.wanted}.")
        if self.prompt_lookup and not self.greedy:
            raise ArgumentError(
                "prompt_lookup guesses what a greedy answer says, and temperature is "
                f"{self.temperature}. Set one of the two to 0."
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop`, as the tuple it is."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop


def _as_tuple(stop: Any) -> Any:
    if isinstance(stop, str):
        return (stop,)
    return tuple(stop) if isinstance(stop, list) else stop


@dataclass(frozen=True, slots=True)
class _Rule:
    holds: Callable[[Any], bool]
    wanted: str


def _whole(least: int, most: int | None = None) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        if isinstance(value, bool):
            return False
        try:
            number = operator.index(value)  # NumPy's whole numbers too
        except TypeError:
            return False
        return least <= number and (most is None or number <= most)

    return holds


def _real(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if isinstance(value, bool | str | bytes):
            return False
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return False
        return math.isfinite(number) and holds(number)

    return check


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _texts(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_STOP_STRINGS
        and all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_LENGTH for text in value)
    )


_RULES: dict[str, _Rule] = {
    "max_new_tokens": _Rule(_whole(1), "a whole number of at least 1"),
    "temperature": _Rule(
        _real(lambda x: x == 0 or x >= MIN_TEMPERATURE),
        f"0 for greedy, or a number from {MIN_TEMPERATURE}",
    ),
    "top_k": _Rule(_whole(0), "0 for all tokens, or a whole number above it"),
    "top_p": _Rule(_real(lambda x: 0 < x <= 1), "a number above 0 and at most 1"),
    "min_p": _Rule(_real(lambda x: 0 <= x <= 1), "a number from 0 to 1"),
    "repetition_penalty": _Rule(_real(lambda x: x > 0), "a number above 0; 1 is none"),
    "seed": _Rule(_or_none(_whole(0, MAX_SEED)), "a whole number of 64 bits from 0, or None"),
    "stop": _Rule(
        _texts,
        f"a text or up to {MAX_STOP_STRINGS} of them, each of 1 to {MAX_STOP_LENGTH} characters",
    ),
    "logprobs": _Rule(
        _or_none(_whole(0, MAX_LOGPROBS)), f"a whole number from 0 to {MAX_LOGPROBS}, or None"
    ),
    "prompt_lookup": _Rule(_whole(0, MAX_LOOKUP), f"a whole number from 0 to {MAX_LOOKUP}"),
}
"""What each field must be."""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


__all__ = ["MAX_LOGPROBS", "MAX_LOOKUP", "MAX_STOP_LENGTH", "MAX_STOP_STRINGS", "Settings"]
