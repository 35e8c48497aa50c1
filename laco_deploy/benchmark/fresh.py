"""One variant in a process of its own: cold start, time to load, peak memory.

The peak of a process never falls, so variants that share one would all show that of the largest;
and only a new process has nothing imported, cached or compiled.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from laco_deploy.benchmark.measure import message_of
from laco_deploy.benchmark.memory import device_memory, peak_resident_bytes
from laco_deploy.benchmark.request import Workload, load_contender, timed_request
from laco_runtimes.bundle import open_bundle

REQUESTS = 2
"""The first one allocates; a second one shows what is kept in between."""

_LOADED, _FIRST, _PEAK, _REASON = b"l", b"f", b"p", b"r"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """What a fresh process told."""

    load_ms: float | None = None
    cold_start_ms: float | None = None
    peak_bytes: int | None = None
    note: str | None = None
    """Why anything of the above is None."""
    device_bytes: int | None = None
    device_note: str | None = None


NOT_ASKED = Fresh(note="not asked for", device_note="not asked for")


def fresh_start(root: Path, variant: str, workload: Workload, device: str) -> Fresh:
    """Start a process that opens a bundle as `Pipeline` does, loads one variant and answers.

    The first token's time is taken here, when its message comes, from before the process was
    started; the operating system may hold the files in memory from before.

    Args:
        root: bundle folder.
        device: the device in force, in the engine's own words.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, root, variant, workload), daemon=True)
    told: dict[bytes, str] = {}
    cold_start_ms = None
    with device_memory(device) as gpu:
        start = time.perf_counter_ns()
        process.start()
        sender.close()  # so that the pipe ends with the child, also when that is killed for memory
        try:
            while not {_PEAK, _REASON} & told.keys():
                message = receiver.recv_bytes()
                told[message[:1]] = message[1:].decode()
                if message[:1] == _FIRST:
                    cold_start_ms = (time.perf_counter_ns() - start) / 1e6
        except EOFError:
            process.join()
            told[_REASON] = f"the process that was to measure it ended with code {process.exitcode}"
        finally:
            receiver.close()
            process.kill()
            process.join()
    return Fresh(
        load_ms=float(told[_LOADED]) if _LOADED in told else None,
        cold_start_ms=cold_start_ms,
        peak_bytes=int(told[_PEAK]) if _PEAK in told else None,
        note=told.get(_REASON),
        device_bytes=gpu.peak_bytes,
        device_note=gpu.note,
    )


def _child(sender: Connection, root: Path, variant: str, workload: Workload) -> None:
    try:
        start = time.perf_counter_ns()
        bundle = open_bundle(root)
        contender = load_contender(bundle, bundle.variant(variant), workload)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        sender.send_bytes(_LOADED + repr(load_ms).encode())
        timed_request(replace(contender, workload=replace(workload, new_tokens=(1,))))
        sender.send_bytes(_FIRST)
        for _ in range(REQUESTS):
            timed_request(contender)
        peak = peak_resident_bytes()
    except Exception as error:  # whatever it is, the parent's measurement goes on
        sender.send_bytes(_REASON + message_of(error).encode())
        return
    if peak is None:
        sender.send_bytes(_REASON + f"{sys.platform} does not tell".encode())
    else:
        sender.send_bytes(_PEAK + str(peak).encode())


__all__ = ["NOT_ASKED", "Fresh", "fresh_start"]
