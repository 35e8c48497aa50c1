"""Peak memory of one variant, in a process of its own.

The peak of a process never falls, so variants that share one would all show that of the largest.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from laco_deploy.benchmark.request import Workload, load_contender, timed_request
from laco_runtimes.bundle import Bundle
from laco_runtimes.manifest import Variant

REQUESTS = 2
"""The first one allocates; a second one shows what is kept in between."""

_VALUE, _REASON = b"v", b"r"


def peak_memory(
    bundle: Bundle, variant: Variant, workload: Workload
) -> tuple[int | None, str | None]:
    """Load one variant in a fresh process, send it requests and return its peak memory.

    Returns:
        (bytes, None), or (None, why it could not be found).
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, bundle, variant, workload), daemon=True)
    process.start()
    sender.close()  # so that the pipe ends with the child, also when that is killed for memory
    try:
        message = receiver.recv_bytes()
    except EOFError:
        process.join()
        return None, f"the process that was to measure it ended with code {process.exitcode}"
    finally:
        receiver.close()
        process.kill()
        process.join()
    kind, text = message[:1], message[1:].decode()
    return (int(text), None) if kind == _VALUE else (None, text)


def peak_resident_bytes() -> int | None:
    """Most memory this process has held since it began its program; None where it is unknown.

    On Linux from /proc: `getrusage` counts what was there before `execve` too, so it gives a child
    at least the memory of the process that started it.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes there
    return None


def _child(sender: Connection, bundle: Bundle, variant: Variant, workload: Workload) -> None:
    try:
        contender = load_contender(bundle, variant, workload)
        for _ in range(REQUESTS):
            timed_request(contender)
        peak = peak_resident_bytes()
    except Exception as error:  # whatever it is, the parent's measurement goes on
        sender.send_bytes(_REASON + (str(error) or type(error).__name__).encode())
        return
    if peak is None:
        sender.send_bytes(_REASON + f"{sys.platform} does not tell".encode())
    else:
        sender.send_bytes(_VALUE + str(peak).encode())


__all__ = ["peak_memory", "peak_resident_bytes"]
