"""Where an export stands, how long each stage took and how much memory, also across processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

Progress = Callable[[str, int, int], None]
"""Called with the stage under way, and how many steps of how many are done."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


class Steps(Protocol):
    """What a stage reports to."""

    def enter(self, name: str) -> None:
        """A stage begins."""

    def leave(self, name: str, seconds: float) -> None:
        """It has ended."""

    def step(self) -> None:
        """One more step is done."""


@contextmanager
def stage(steps: Steps, name: str, *, count: int = 1) -> Iterator[None]:
    """A stage from its begin to its end; with `count` it is that many steps itself."""
    steps.enter(name)
    start = time.perf_counter()
    yield
    steps.leave(name, time.perf_counter() - start)
    for _ in range(count):
        steps.step()


@dataclass(slots=True)
class Watch:
    """Tells the caller of an export, and notes what the result will state."""

    progress: Progress
    total: int
    done: int = 0
    name: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of every stage."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Most memory that the process of a stage held."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Stages may run at the same time, and each tells from a thread of its own."""

    def enter(self, name: str) -> None:
        """See `Steps`."""
        with self._lock:
            self.name = name
            self.progress(name, self.done, self.total)

    def leave(self, name: str, seconds: float) -> None:
        """See `Steps`."""
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def step(self) -> None:
        """See `Steps`."""
        with self._lock:
            self.done += 1
            self.total = max(self.total, self.done)
            self.progress(self.name, self.done, self.total)


__all__ = ["Progress", "Steps", "Watch", "silent", "stage"]
