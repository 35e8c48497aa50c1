"""How a published folder names an encoder's weights, and what those are called in transformers."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyRule:
    """One published name and what becomes of it."""

    pattern: str
    """Regular expression for the whole name, without the prefix of the layout."""
    targets: tuple[str, ...]
    """Names in the transformers module, as templates for the match. Several: the tensor is cut into
    equal parts along its first axis, one for each."""
    squeeze: bool = False
    """Drop the first axis, which has one entry."""


@dataclass(frozen=True, slots=True)
class KeyLayout:
    """One way of naming an encoder's weights; without rules, that of transformers."""

    prefix: str = ""
    """What stands before the names of the encoder in a folder that holds more than that."""
    rules: tuple[KeyRule, ...] = ()
    leftover: tuple[str, ...] = ()
    """Regular expressions for whole published names that this package has no use for."""

    def translate(self, key: str) -> tuple[tuple[str, ...], bool]:
        """Names in transformers (none: unknown key), and whether to drop the first axis."""
        if not key.startswith(self.prefix):
            return (), False
        name = key.removeprefix(self.prefix)
        if not self.rules:
            return (name,), False
        for rule in self.rules:
            if match := re.fullmatch(rule.pattern, name):
                return tuple(match.expand(target) for target in rule.targets), rule.squeeze
        return (), False

    def is_leftover(self, key: str) -> bool:
        """Whether a published name is left over on purpose."""
        return any(re.fullmatch(pattern, key) for pattern in self.leftover)


__all__ = ["KeyLayout", "KeyRule"]
