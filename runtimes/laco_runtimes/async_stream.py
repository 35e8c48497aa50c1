"""The pieces of an answer in an event loop. The engine runs in a thread and never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Self

from laco_runtimes.reply import Reply
from laco_runtimes.stream import ReplyStream
from laco_runtimes.worker import Worker

Item = str | BaseException | None
"""A piece, what ended the stream too soon, or its end."""


class AsyncReplyStream(AsyncIterator[str]):
    """As `ReplyStream`, for `async for`; nothing runs before the first piece is asked for.

    `stop()` ends the answer and keeps what there is of it; `aclose()`, leaving an `async with`
    block, dropping the stream or cancelling the task that reads it cancels the answer.
    """

    def __init__(self, stream: ReplyStream, worker: Worker) -> None:
        self._stream = stream
        self._worker = worker
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._running: Future[None] | None = None
        self._ended = False

    async def __anext__(self) -> str:
        if self._ended:
            raise StopAsyncIteration
        if self._running is None:
            loop = asyncio.get_running_loop()
            self._running = self._worker.pool.submit(_read, self._stream, self._items, loop)
        try:
            item = await self._items.get()
        except asyncio.CancelledError:
            self._stream.close()
            raise
        if isinstance(item, str):
            return item
        self._ended = True
        if item is not None:
            raise item
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._running is not None and not self._running.done():
            self._stream.close()

    def stop(self) -> None:
        """Stop generating and keep the answer so far; read on for its last pieces."""
        self._stream.stop()

    async def aclose(self) -> None:
        """Stop generating and drop the answer; returns when the engine has stopped."""
        self._stream.close()
        self._ended = True
        if self._running is not None and not self._running.cancel():
            await asyncio.wrap_future(self._running)

    @property
    def reply(self) -> Reply:
        """The whole answer, with its counts and times.

        Raises:
            ArgumentError: the stream was neither read to its end nor stopped.
        """
        return self._stream.reply


def _read(stream: ReplyStream, items: asyncio.Queue[Item], loop: asyncio.AbstractEventLoop) -> None:
    """Run an answer in this thread and hand its pieces to the loop."""
    end: Item = None
    with stream, suppress(RuntimeError):  # which says that the loop was closed: nobody reads on
        try:
            for piece in stream:
                loop.call_soon_threadsafe(items.put_nowait, piece)
        except BaseException as error:  # to be raised where the pieces are read
            end = error
        loop.call_soon_threadsafe(items.put_nowait, end)


__all__ = ["AsyncReplyStream"]
