"""A worker whose clock it moves itself: 2 s to the first token, 0.5 s for each further one.

Its settings say how it misbehaves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from samples.peers.workers.serve import Answer, Clock, serve

NOW = [0.0]


def load(settings: Mapping[str, Any], clock: Clock) -> Answer:
    if settings.get("refuse"):
        raise OSError("no such model")
    os.write(1, b"a library that prints\n")

    def answer(prompt: list[int], count: int) -> Sequence[float]:
        print("another line")
        if settings.get("die_at") == len(prompt):
            print("out of memory, aborting", file=sys.stderr, flush=True)
            os._exit(3)
        if settings.get("fail_at") == len(prompt):
            raise ValueError("bad prompt")
        NOW[0] += 2.0
        times = [NOW[0]]
        for _ in range(count - 1 - settings.get("short", 0)):
            NOW[0] += 0.5
            times.append(NOW[0])
        return times

    return answer


if __name__ == "__main__":
    sys.exit(serve(load, ("pytest",), clock=lambda: NOW[0]))
