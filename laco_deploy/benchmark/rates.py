"""What this machine can do at best: its rate of dense layers and its memory bandwidth."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from laco_deploy.benchmark.limits_schema import MachineRates
from laco_deploy.benchmark.products import OPERATIONS, PRODUCTS, Run
from laco_runtimes.engines.base import engine_errors
from laco_runtimes.errors import EngineError

Clock = Callable[[], int]
"""Nanoseconds since some moment."""

SECONDS = 0.4
"""How long each rate is measured; the best of these runs counts."""
LEAST_RUNS = 3

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE = 32 * 2**20
"""Taken for the last cache where the system does not tell its size."""
LEAST_ARRAY, LARGEST_ARRAY = 64 * 2**20, 512 * 2**20


def measure_rates(
    target: str,
    device: str,
    threads: int | None,
    *,
    seconds: float = SECONDS,
    clock: Clock = time.perf_counter_ns,
) -> MachineRates:
    """Measure now, in this process; what cannot be measured is said in `notes`.

    Args:
        target: of the bundle, a key of `laco_runtimes.engines.ENGINES`.
        device: in force, in the engine's own words.
        threads: CPU threads per inference; None leaves it to the engine.
        seconds: for each rate.
        clock: of nanoseconds.
    """
    notes: list[str] = []
    matrix: dict[str, float] = {}
    if target not in PRODUCTS:
        notes.append(f"no rate of matrix products: there is no such measurement for {target}")
    else:
        try:
            with engine_errors(f"a matrix product with {target}", "It is left out"):
                for precision, run in PRODUCTS[target](device, threads).items():
                    matrix[precision] = OPERATIONS / best_ns(run, seconds, clock)
        except EngineError as error:
            notes.append(f"no rate of matrix products: {str(error).rstrip('.')}")
    bandwidth = None
    if device.lower() != "cpu":
        notes.append(f"no memory bandwidth: {device} may have memory of its own")
    else:
        try:
            bandwidth = memory_gb_per_s(threads, seconds=seconds, clock=clock)
        except MemoryError:
            notes.append("no memory bandwidth: there is no memory left to copy")
    return MachineRates(
        matrix_gflops=matrix, memory_gb_per_s=bandwidth, threads=threads, notes=tuple(notes)
    )


def memory_gb_per_s(
    threads: int | None, *, seconds: float = SECONDS, clock: Clock = time.perf_counter_ns
) -> float:
    """10^9 bytes per second that are read and written by copying arrays larger than any cache.

    A core that first reads what it is going to write moves half as much again, which is not counted
    here, as an engine does the same.

    Raises:
        MemoryError: no room for the arrays.
    """
    count = threads or usable_cores()
    source = np.ones(array_bytes() // 8, np.float64)
    target = np.zeros_like(source)
    parts = list(zip(*(np.array_split(one, count) for one in (source, target)), strict=True))

    def copy(part: tuple[np.ndarray, np.ndarray]) -> None:
        np.copyto(part[1], part[0])  # without the interpreter's lock

    with ThreadPoolExecutor(count) as pool:
        best = best_ns(lambda: list(pool.map(copy, parts)), seconds, clock)
    return 2 * source.nbytes / best


def array_bytes(caches: Path = CACHES) -> int:
    """Twice the last cache: source and target are together four times as large as that."""
    return min(max(2 * last_cache_bytes(caches), LEAST_ARRAY), LARGEST_ARRAY)


def last_cache_bytes(caches: Path = CACHES) -> int:
    """Size of the largest cache of the first core."""
    found = [UNKNOWN_CACHE] if not caches.is_dir() else []
    for path in caches.glob("index*/size"):
        text = path.read_text(encoding="ascii", errors="replace").strip()
        units = {"K": 2**10, "M": 2**20}
        if text[:-1].isdigit() and text[-1:] in units:
            found.append(int(text[:-1]) * units[text[-1]])
    return max(found, default=UNKNOWN_CACHE)


def usable_cores() -> int:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def best_ns(run: Run, seconds: float, clock: Clock = time.perf_counter_ns) -> int:
    """Shortest of the runs that fit in a time; the first, which warms up, does not count."""
    run()
    start, times = clock(), list[int]()
    while len(times) < LEAST_RUNS or clock() - start < seconds * 1e9:
        before = clock()
        run()
        times.append(clock() - before)
    return max(min(times), 1)


__all__ = [
    "Clock",
    "array_bytes",
    "best_ns",
    "last_cache_bytes",
    "measure_rates",
    "memory_gb_per_s",
    "usable_cores",
]
