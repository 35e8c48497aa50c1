"""What all workers do: load a model, then answer requests in lines of JSON.

A worker is started as `python -m samples.peers.workers.run_<system> '<settings in JSON>'`. It
writes `{"versions": ...}` when it is ready, then one line for every line it reads:

    {"prompt": [ids], "new_tokens": 24}  ->  {"first_s": ..., "step_s": ..., "tokens": 24}

or `{"error": ...}`. Its own clock starts after a line was read, so pipes are not timed. Whatever
libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

Clock = Callable[[], float]

Answer = Callable[[list[int], int], Sequence[float]]
"""Token ids of a prompt and how many to make -> reading of the clock when each was there."""

Load = Callable[[Mapping[str, Any], Clock], Answer]
"""Settings (`model`, `threads`, `context`, `backend`) -> what answers."""


def timed(answer: Answer, prompt: list[int], count: int, clock: Clock) -> dict[str, float]:
    """Time to the first token and per further token, in seconds, of one request.

    Raises:
        RuntimeError: it made fewer tokens than it was asked for, or more.
    """
    start = clock()
    times = answer(prompt, count)
    if len(times) != count:
        raise RuntimeError(f"{count} tokens were asked for, {len(times)} came")
    return {
        "first_s": times[0] - start,
        "step_s": (times[-1] - times[0]) / (count - 1),
        "tokens": count,
    }


def serve(load: Load, packages: Sequence[str], clock: Clock = time.perf_counter) -> int:
    """Load and answer until stdin ends; exit code 1 if the model could not be loaded.

    Args:
        load: of the one system that this worker runs.
        packages: whose versions are reported.
        clock: in seconds.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print, from C as well, must not be taken for a reply

    def reply(what: Mapping[str, Any]) -> None:
        replies.write(json.dumps(what) + "\n")
        replies.flush()

    try:
        answer = load(json.loads(sys.argv[1]), clock)
        reply({"versions": {name: metadata.version(name) for name in packages}})
    except Exception as error:  # of any library: the parent goes on without this system
        reply({"error": f"{type(error).__name__}: {error}"})
        return 1
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply(timed(answer, request["prompt"], request["new_tokens"], clock))
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {error}"})
    return 0


__all__ = ["Answer", "Clock", "Load", "serve", "timed"]
