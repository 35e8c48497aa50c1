"""A check in a process of its own: an engine that crashes or hangs ends that one, not the report.

Engines are native code: on a processor they were not built for, or on a driver they do not fit,
they end the process they are in.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection

from laco_deploy.doctor.finding import Area, Finding, finding_of
from laco_runtimes.engines.base import MAX_QUOTED
from laco_runtimes.errors import LacoError

Check = Callable[..., Iterable[Finding]]
"""A function at the top of its module, so that another process finds it by its name."""

_DONE = b""


def run_apart(
    check: Check,
    *arguments: str,
    area: Area,
    name: str,
    timeout_s: float,
    remedy: str,
) -> Iterator[Finding]:
    """What a check finds, one by one, and a failure more where it does not come to its end.

    Args:
        check: run in a fresh process.
        arguments: what it is called with.
        area: of the failure, should there be one.
        name: likewise.
        timeout_s: longest that the check may take, its imports included.
        remedy: what to do when it crashes or hangs.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(sender, check, arguments, area, name, remedy), daemon=True
    )
    process.start()
    sender.close()  # so that the pipe ends with the child
    deadline = time.monotonic() + timeout_s
    trouble: str | None = None
    try:
        while receiver.poll(max(deadline - time.monotonic(), 0)):
            if (message := receiver.recv_bytes()) == _DONE:
                break
            yield Finding(**json.loads(message))
        else:
            trouble = f"it did not come to an end within {timeout_s:g} s"
    except EOFError:
        process.join()
        trouble = f"its process ended with {_ending(process.exitcode)}"
    finally:
        receiver.close()
        process.kill()
        process.join()
    if trouble is not None:
        yield Finding(area=area, name=name, state="failed", said=f"{trouble}.", remedy=remedy)


def _child(
    sender: Connection,
    check: Check,
    arguments: tuple[str, ...],
    area: Area,
    name: str,
    remedy: str,
) -> None:
    def send(finding: Finding) -> None:
        sender.send_bytes(json.dumps(asdict(finding)).encode())

    try:
        for finding in check(*arguments):
            send(finding)
    except LacoError as error:
        send(finding_of(area, name, error))
    except Exception as error:  # a package that is broken raises anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_QUOTED]
        send(Finding(area=area, name=name, state="failed", said=said, remedy=remedy))
    sender.send_bytes(_DONE)


def _ending(code: int | None) -> str:
    """An exit code in words; a negative one is the number of a signal."""
    try:
        return signal.Signals(-(code or 0)).name
    except ValueError:
        return f"code {code}"


__all__ = ["Check", "run_apart"]
