"""A stage in a process of its own, which gives all its memory back when it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import Empty
from typing import Any, Concatenate, ParamSpec, TypeVar

from laco_export.memory import peak_bytes
from laco_export.progress import Steps, Watch
from laco_runtimes.errors import ExportError, LacoError

Returned = TypeVar("Returned")
Other = TypeVar("Other")
Arguments = ParamSpec("Arguments")

_POLL_S = 0.2

_prepared = False
"""Whether there is a process that stages are forked from."""


def prepare(modules: Sequence[str]) -> None:
    """Begin to import what stages need, in a process that they are forked from.

    With torch and transformers that takes ten seconds, for each stage that comes without it; the
    caller may go on meanwhile. The process ends with this one.

    On Linux alone: elsewhere a fork behind such imports is not safe.

    Args:
        modules: their names. One that cannot be imported is left to the stage.
    """
    global _prepared  # noqa: PLW0603 - so is the process to fork from
    if sys.platform == "linux" and not _prepared:
        from multiprocessing import forkserver  # not there on Windows

        multiprocessing.set_forkserver_preload(list(modules))
        with _uninterrupted():
            forkserver.ensure_running()
        _prepared = True


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """What begins in here lives through Ctrl-C in the terminal: its parent ends it, without the
    tracebacks of both."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere it cannot be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True, slots=True)
class StageRunner:
    """Runs the stages of an export.

    Args:
        watch: told of them.
        apart: whether each runs in a process of its own.
        beside: whether such processes may run at the same time.
    """

    watch: Watch
    apart: bool
    beside: bool = False

    def run(
        self,
        name: str,
        function: Callable[Concatenate[Steps, Arguments], Returned],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Returned:
        """Call `function` with something to report to and `arguments`.

        Args:
            name: of what it does, for memory and errors.
            function: of a module, so that another process can find it by name.
            *arguments: its further arguments.
            **options: these as well.

        Raises:
            ExportError: the process was killed.
            LacoError: what the function raised.
        """
        if self.apart:
            call: Callable[[Steps], Returned] = partial(_bound, function, arguments, options)
            result, peak = _run_apart(self.watch, name, call)
        else:
            result, peak = function(self.watch, *arguments, **options), peak_bytes()
        self.watch.peak_bytes[name] = max(peak, self.watch.peak_bytes.get(name, 0))
        return result

    def together(
        self, one: Callable[[], Returned], other: Callable[[], Other]
    ) -> tuple[Returned, Other]:
        """Call what runs stages that do not need each other; at the same time where that may be.

        Much of an export is Python on one core, which leaves the others to another stage.

        Raises:
            ExportError: a process was killed.
            LacoError: what the first stage that failed raised; the other's process is ended.
        """
        if not (self.apart and self.beside):
            return one(), other()
        with ThreadPoolExecutor(2) as executor:
            first, second = executor.submit(one), executor.submit(other)
            futures: list[Future[Any]] = [first, second]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                while wait(futures, timeout=_POLL_S).not_done:  # between two stages it has none
                    _end_processes()
                raise
            return first.result(), second.result()


@dataclass(frozen=True, slots=True)
class _Failed:
    """An error of ours on its way home: not every one survives pickling."""

    kind: type[LacoError]
    message: str


class _Sender:
    """`Steps` that are counted in another process."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def enter(self, name: str) -> None:
        self._queue.put(("enter", name))

    def leave(self, name: str, seconds: float) -> None:
        self._queue.put(("leave", name, seconds))

    def step(self) -> None:
        self._queue.put(("step",))


_sender: _Sender | None = None


def _start(queue: Any) -> None:
    """Runs first in the new process. Where its parent is killed, it ends as well."""
    global _sender  # noqa: PLW0603 - the one thing a worker is given besides its arguments
    _sender = _Sender(queue)

    def watch_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()


def _bound(
    function: Callable[..., Returned],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    steps: Steps,
) -> Returned:
    return function(steps, *arguments, **options)


def _call(call: Callable[[Steps | None], Returned]) -> tuple[Returned | _Failed, int]:
    try:
        return call(_sender), peak_bytes()
    except LacoError as error:
        return _Failed(type(error), str(error)), peak_bytes()


def _run_apart(watch: Watch, name: str, call: Callable[[Steps], Returned]) -> tuple[Returned, int]:
    # Never a fork of this process: after threads of torch that would hang.
    context = multiprocessing.get_context("forkserver" if _prepared else "spawn")
    queue = context.Queue()
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=_start, initargs=(queue,)
    ) as executor:
        future: Future[tuple[Any, int]] = executor.submit(_call, call)  # type: ignore[arg-type]
        try:
            while not wait([future], timeout=_POLL_S).done:
                _drain(queue, watch)
            result, peak = future.result()
        except BrokenProcessPool:
            raise ExportError(
                f"the process for '{name}' was ended from outside, most likely by the system for "
                "want of memory. Close other programs, or export on a machine with more memory."
            ) from None
        except BaseException:
            _end_processes()
            raise
        _drain(queue, watch, last=True)
    queue.close()
    if isinstance(result, _Failed):
        error = result.kind.__new__(result.kind, result.message)
        raise error
    return result, peak


def _end_processes() -> None:
    for process in multiprocessing.active_children():
        if process.name.startswith(("SpawnProcess", "ForkServerProcess")):
            process.terminate()


def _drain(queue: Any, watch: Watch, *, last: bool = False) -> None:
    while True:
        try:
            kind, *rest = queue.get(timeout=0.05) if last else queue.get_nowait()
        except Empty:
            return
        getattr(watch, kind)(*rest)


__all__ = ["StageRunner", "prepare"]
