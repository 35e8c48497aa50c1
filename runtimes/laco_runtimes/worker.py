"""The thread of a pipeline's asynchronous requests."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


class Worker:
    """The one thread that answers a pipeline's asynchronous requests, in their order.

    One is enough, as the engine takes one request at a time; and as it runs ahead of its reader, a
    reader that waits for another answer holds nobody up.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Started when first asked for."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="laco")
            return self._pool


__all__ = ["Worker"]
