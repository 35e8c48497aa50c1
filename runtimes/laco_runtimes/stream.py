"""The pieces of an answer as they come, for a reader in a thread and for one in an event loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from typing import Self

from laco_runtimes.errors import ArgumentError
from laco_runtimes.reply import Reply
from laco_runtimes.turnstile import Control

Pieces = Generator[str, None, Reply | None]


class ReplyStream(Iterator[str]):
    """The pieces of an answer; `reply` holds the whole once they are all read, or it was stopped.

    `stop()` ends the answer and keeps what there is of it; `close()`, leaving a `with` block, or
    dropping the stream cancels it, and a history is then as it was before. Both may be called from
    another thread and hold within one token.
    """

    def __init__(self, pieces: Pieces, control: Control) -> None:
        self._pieces = pieces
        self._control = control
        self._left: deque[str] = deque()
        self._reply: Reply | None = None
        self._started = False
        self._reading = threading.Lock()

    def __next__(self) -> str:
        with self._reading:
            return self._left.popleft() if self._left else self._advance()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Stop generating and keep the answer so far; the pieces still held back can be read.

        Before the first piece was read there is nothing to keep, and it is as `close`.
        """
        self._control.wish = "stop"
        if not self._reading.acquire(blocking=False):
            return  # a thread that reads sees the wish by itself
        try:
            if not self._started:
                self._pieces.close()
            while True:
                try:
                    self._left.append(self._advance())
                except StopIteration:
                    return
        finally:
            self._reading.release()

    def close(self) -> None:
        """Stop generating and drop the answer. Does nothing on a stream that has ended."""
        self._control.wish = "cancel"
        if self._reading.acquire(blocking=False):
            try:
                self._left.clear()
                self._pieces.close()
            finally:
                self._reading.release()

    @property
    def reply(self) -> Reply:
        """The whole answer, with its counts and times.

        Raises:
            ArgumentError: the stream was neither read to its end nor stopped.
        """
        if self._reply is None:
            raise ArgumentError(
                "the answer is not complete. Read the stream to its end or stop it, then ask for "
                "its reply."
            )
        return self._reply

    def _advance(self) -> str:
        self._started = True
        try:
            return next(self._pieces)
        except StopIteration as end:
            reply: Reply | None = end.value
            if reply is not None and reply.stop_reason != "cancelled":
                self._reply = reply
            raise StopIteration from None


__all__ = ["Pieces", "ReplyStream"]
