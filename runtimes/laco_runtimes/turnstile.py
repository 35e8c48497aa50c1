"""One request at a time: others wait, and a thread that would wait for itself is told so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from laco_runtimes.errors import ArgumentError

STALLED_S = 1.0
"""How long a request waits for a stream that its own thread holds open, before it gives up."""


Wish = Literal["", "stop", "cancel"]


class Control:
    """What the reader of an answer asks of it, from any thread. It is heeded after each token."""

    __slots__ = ("wish",)

    def __init__(self) -> None:
        self.wish: Wish = ""


class Withdrawn(Exception):  # noqa: N818 - no error: nobody waits for the answer any more
    """A request was stopped or cancelled before its turn came."""


class Turnstile:
    """Lets requests through one by one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_thread: int | None = None

    @contextmanager
    def turn(self, control: Control) -> Iterator[None]:
        """Wait until no other request runs.

        A stream that this thread itself left half read would be waited for in vain. It shows in
        that nobody else has moved it on, and is an error rather than a hang.

        Raises:
            ArgumentError: that is so.
            Withdrawn: `control` asked for an end while others ran.
        """
        while not self._lock.acquire(timeout=STALLED_S):
            if control.wish:
                raise Withdrawn
            if self._last_thread == threading.get_ident():
                raise ArgumentError(
                    "a stream of this pipeline is still open on this thread. Read it to its end or "
                    "close it first."
                )
        try:
            if control.wish:
                raise Withdrawn
            self.moved()
            yield
        finally:
            self._last_thread = None
            self._lock.release()

    def moved(self) -> None:
        """This thread has moved the request on that runs."""
        self._last_thread = threading.get_ident()


__all__ = ["STALLED_S", "Control", "Turnstile", "Wish", "Withdrawn"]
