"""Pick from a table by a name that a user typed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from laco_runtimes.errors import ArgumentError

Choice = TypeVar("Choice")


def choose(what: str, name: str, table: Mapping[str, Choice]) -> Choice:
    """The entry of that name.

    Raises:
        ArgumentError: no such entry; the message lists all and points at the nearest.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ArgumentError(f"unknown {what} {name!r}. Known: {', '.join(table)}.{hint}")


__all__ = ["choose"]
