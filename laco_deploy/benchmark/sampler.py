"""A value read again and again in a thread, while something else runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SECONDS = 0.05
"""Between two readings; the power monitors of boards average over about as long."""


class Sampler:
    """Reads a value until it is stopped, and knows its largest and its integral over time.

    Args:
        read: gives the value; what it raises ends the readings and is raised by `stop`.
    """

    def __init__(
        self,
        read: Callable[[], float],
        *,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._read, self._seconds, self._clock = read, seconds, clock
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._last: tuple[float, float] | None = None
        self._integral = 0.0
        self._largest = float("-inf")
        self._error: Exception | None = None

    def start(self) -> None:
        """Read once, and go on in a thread."""
        self.sample()
        self._thread.start()

    def stop(self) -> None:
        """End the thread.

        Raises:
            Exception: whatever `read` raised.
        """
        self._end.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def sample(self) -> None:
        """Read now; the integral grows by the trapezoid since the reading before."""
        with self._lock:
            value, now = self._read(), self._clock()
            if self._last is not None:
                before, earlier = self._last
                self._integral += (value + before) / 2 * (now - earlier)
            self._last = value, now
            self._largest = max(self._largest, value)

    def integral(self) -> float:
        """Value times seconds from the start until now."""
        self.sample()
        return self._integral

    @property
    def largest(self) -> float:
        """Largest of the values so far."""
        return self._largest

    def _run(self) -> None:
        while not self._end.wait(self._seconds):
            try:
                self.sample()
            except Exception as error:
                self._error = error
                return


__all__ = ["Sampler"]
