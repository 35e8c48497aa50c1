"""What stands in an engine's KV cache: a request only pays for what is new in its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from laco_runtimes.engines.base import LanguageModel
from laco_runtimes.errors import LacoError

Slot = int | tuple[bytes, int]
"""What one position holds: the id of a token, or the digest of an image and the number of one of
its visual tokens."""


class KVState:
    """Keeps account of an engine's KV cache.

    Args:
        language: the engine, which nobody else prefills, steps or rewinds.
        rewinds: whether it can shorten its cache to other lengths than 0.
    """

    def __init__(self, language: LanguageModel, *, rewinds: bool) -> None:
        self._language = language
        self._rewinds = rewinds
        self._slots: list[Slot] = []
        self._known = False

    def keep_common(self, slots: Sequence[Slot]) -> int:
        """Shorten the cache to what a prompt begins with.

        At least one token of the prompt is left to prefill, for its logits.

        Args:
            slots: of the whole prompt, at least one.

        Returns:
            how many tokens of the prompt are in the cache.
        """
        return self.cut(common_length(self._slots, slots[:-1]))

    def cut(self, length: int) -> int:
        """Shorten the cache to at most `length` tokens; to 0 where the engine cannot.

        Returns:
            tokens that are left.
        """
        length = min(length, len(self._slots))
        if not self._known or (length < self._language.length and not self._rewinds):
            length = 0
        if length == 0 or length < self._language.length:
            self._known = False
            self._language.rewind(length)
            self._known = True
        del self._slots[length:]
        return length

    def record(self, slots: Sequence[Slot]) -> None:
        """Take account of what was appended.

        Args:
            slots: of the prompt and the answer. The engine has prefilled the prompt; of the answer
                it may hold less (the last token is not stepped) or more (a draft half taken).
        """
        held = self._language.length
        self._slots = list(slots[:held])
        self.cut(len(self._slots))

    def forget(self) -> None:
        """Empty the cache, whatever state an error left it in."""
        self._slots, self._known = [], False
        with suppress(LacoError):  # the next request tries again, and then says so
            self._language.rewind(0)
            self._known = True

    def __len__(self) -> int:
        return len(self._slots)


def common_length(left: Sequence[Slot], right: Sequence[Slot]) -> int:
    """How many slots two sequences have in common from the start."""
    shorter = min(len(left), len(right))
    pairs = zip(left, right, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), shorter)


__all__ = ["KVState", "Slot", "common_length"]
