"""Objects that requests leave behind, on an engine of Python alone. Engines: the soak test."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

from PIL import Image

from laco_runtimes.pipeline import Pipeline
from tests.runtime.hashing import HashEngine

PICTURES = [Image.new("RGB", (20, 10), (shade, 0, 0)) for shade in range(4)]
REQUESTS = 100
LEAST_BYTES = 1000  # per request


def test_requests_leave_no_objects_behind(
    load_hashing: Callable[..., tuple[Pipeline, HashEngine]],
) -> None:
    pipeline, engine = load_hashing()

    def work(count: int) -> None:
        for number in range(count):
            history = pipeline.new_history()
            pipeline.chat(PICTURES[number % 4], "What?", history=history, max_new_tokens=4)
            with pipeline.stream(None, "And?", history=history, max_new_tokens=4) as stream:
                next(stream, None)
            pipeline.chat(None, "Then?", max_new_tokens=4, logprobs=2)
        for kept in (engine.calls, engine.prefilled, engine.tiles):
            kept.clear()
        gc.collect()

    work(10)
    tracemalloc.start()
    try:
        work(10)
        before = tracemalloc.get_traced_memory()[0]
        work(REQUESTS)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < LEAST_BYTES * REQUESTS / 10
