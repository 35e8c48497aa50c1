"""Thousands of chats in a process of their own, and what they leave behind. Prints JSON.

python -m tests.runtime.suite.soak FOLDER REQUESTS
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import threading
from pathlib import Path

import numpy as np

from laco_runtimes.pipeline import Pipeline
from tests.runtime.suite.talk import IMAGES, LONG, QUESTIONS

WARM_UP = 400
BLOCKS = 20
T_95 = 2.101
"""Quantile of Student's t for a two-sided bound of 95 % with `BLOCKS` - 2 degrees of freedom."""


def resident_bytes() -> int:
    """Memory of this process, as the system counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """File descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def slope(per_block: int, memory: list[int]) -> tuple[float, float]:
    """Bytes per request and the upper bound of 95 %, by least squares over the blocks.

    Blocks are long enough for what is left over in one to say nothing of the next.
    """
    requests = per_block * np.arange(len(memory), dtype=np.float64)
    steps, start = np.polyfit(requests, memory, 1)
    errors = np.asarray(memory) - (steps * requests + start)
    spread = float(((requests - requests.mean()) ** 2).sum())
    deviation = np.sqrt(float((errors**2).sum()) / (len(memory) - 2) / spread)
    return float(steps), float(steps + T_95 * deviation)


def chat(pipeline: Pipeline, chance: random.Random) -> int:
    """One dialogue of one to three turns, some of them ended early or failed; the requests made."""
    history = pipeline.new_history()
    turns = chance.choice([1, 1, 1, 2, 3])
    for turn in range(turns):
        image = chance.choice(IMAGES) if turn == 0 else None
        how = LONG if chance.random() < 0.1 else {}
        stream = pipeline.stream(image, chance.choice(QUESTIONS), history=history, **how)
        end = chance.choice(["read", "read", "close", "stop"])
        for _ in stream:
            if end != "read":
                getattr(stream, end)()
    return turns


def main() -> None:
    """Warm up, then measure."""
    pipeline = Pipeline(sys.argv[1], threads=1)
    requests, chance = int(sys.argv[2]), random.Random(1)

    def run(count: int) -> None:
        while count > 0:
            count -= chat(pipeline, chance)
        gc.collect()

    run(WARM_UP)
    files, threads = open_files(), threading.active_count()
    memory = []
    for _ in range(BLOCKS):
        run(requests // BLOCKS)
        memory.append(resident_bytes())
    per_request, upper = slope(requests // BLOCKS, memory)
    report = {
        "engine": pipeline.info.engine,
        "requests": requests,
        "bytes_per_request": round(per_request),
        "upper_95": round(upper),
        "resident_mb": round(memory[-1] / 1e6, 1),
        "files": open_files() - files,
        "threads": threading.active_count() - threads,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
