"""Prompt lookup: guess the next tokens from what the prompt and the answer said before.

Answers about documents repeat words of the question and of themselves. The last few tokens are
looked for further up, and what followed there is the draft; one pass of the model then checks all
of it (Saxena, "Prompt Lookup Decoding", 2023; speculative decoding with a greedy target).
"""

from __future__ import annotations

from collections.abc import Iterable

from laco_runtimes.engines.base import Capabilities
from laco_runtimes.errors import ArgumentError
from laco_runtimes.settings import Settings

LENGTHS = (4, 3, 2)
"""Tokens that must have been said before, in order: the more agree, the better the guess."""
FIRST_DRAFT = 2
LONGEST_PAUSE = 16
"""Steps without a draft after several that were all wrong."""


class PromptLookup:
    """Drafts for one answer.

    A draft begins short and doubles as long as whole drafts are right. After one that is wrong from
    its first token there is a pause, twice as long each time, so that text which does not repeat
    itself costs next to nothing. An answer is that of step by step decoding as far as the engine's
    `score` gives the logits of its `step`.

    Args:
        prompt_ids: all tokens before the answer.
        most: longest draft.
        image_token_id: stands for visual tokens, which say nothing of words and never match.
    """

    def __init__(
        self, prompt_ids: Iterable[int], most: int, *, image_token_id: int | None = None
    ) -> None:
        self._most = most
        self._image = image_token_id
        self._length = min(FIRST_DRAFT, most)
        self._pause = self._left = 0
        self._ids: list[int] = []
        self._words = 0
        self._ends: dict[tuple[int, ...], int] = {}
        for token in prompt_ids:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take the next token of the prompt or the answer."""
        end = len(self._ids)
        # Only now, so that the last tokens are never found where they stand.
        for length in LENGTHS:
            if length <= self._words:
                self._ends[tuple(self._ids[end - length :])] = end
        self._ids.append(token)
        self._words = 0 if token == self._image else self._words + 1

    def draft(self, most: int) -> list[int]:
        """Tokens that may come next, up to `most`; none where nothing like it was said before."""
        if self._left:
            self._left -= 1
            return []
        most = min(most, self._length)
        for length in LENGTHS:
            if most < 1 or length > self._words:
                continue
            end = self._ends.get(tuple(self._ids[-length:]))
            if end is not None:
                found = self._ids[end : end + most]
                return found[: found.index(self._image)] if self._image in found else found
        return []

    def learn(self, drafted: int, right: int) -> None:
        """Adapt to how much of a draft was right."""
        self._pause = min(2 * self._pause or 1, LONGEST_PAUSE) if right == 0 else 0
        self._left = self._pause
        longer = 2 * self._length if right == drafted else right + 1
        self._length = max(1, min(longer, self._most))


def check_lookup(settings: Settings, capabilities: Capabilities) -> None:
    """Refuse prompt lookup on an engine that cannot check a draft.

    Raises:
        ArgumentError: always then.
    """
    able = capabilities.scores and capabilities.rewinds
    if settings.prompt_lookup and not able:
        missing = "rewind its KV cache" if capabilities.scores else "give logits of several tokens"
        raise ArgumentError(
            f"prompt_lookup needs an engine that can {missing}, and this one cannot with this "
            "model. Set prompt_lookup to 0, or use another engine."
        )


__all__ = ["PromptLookup", "check_lookup"]
