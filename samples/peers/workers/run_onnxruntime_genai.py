"""onnxruntime-genai on the folder that its model builder wrote."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samples.peers.workers.serve import Answer, Clock, serve


def load(settings: Mapping[str, Any], clock: Clock) -> Answer:
    """See `serve.Load`."""
    genai: Any = importlib.import_module("onnxruntime_genai")
    config = genai.Config(settings["model"])
    if settings["threads"]:
        session = {"intra_op_num_threads": settings["threads"]}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = genai.Model(config)

    def answer(prompt: list[int], count: int) -> Sequence[float]:
        params = genai.GeneratorParams(model)
        length = len(prompt) + count
        # A prompt of noise may be answered by an end: the least length forbids it.
        params.set_search_options(do_sample=False, max_length=length, min_length=length)
        generator = genai.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        times: list[float] = []
        while len(times) < count and not generator.is_done():
            generator.generate_next_token()
            times.append(clock())
        return times

    return answer


if __name__ == "__main__":
    sys.exit(serve(load, ("onnxruntime", "onnxruntime-genai")))
