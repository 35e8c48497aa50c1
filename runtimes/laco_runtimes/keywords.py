"""Keywords of `Pipeline.chat` and its like: the fields of `Settings`, for type checkers."""

from __future__ import annotations

from typing import TypedDict


class SettingsKeywords(TypedDict, total=False):
    """Fields of `laco_runtimes.settings.Settings`, where their defaults stand."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | tuple[str, ...]
    logprobs: int | None
    prompt_lookup: int


__all__ = ["SettingsKeywords"]
