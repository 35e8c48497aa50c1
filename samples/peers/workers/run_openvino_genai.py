"""openvino_genai on optimum-intel's export, told to report every token."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samples.peers.workers.serve import Answer, Clock, serve


def load(settings: Mapping[str, Any], clock: Clock) -> Answer:
    """See `serve.Load`; `backend` is its attention backend, SDPA or PA."""
    openvino = importlib.import_module("openvino")
    genai: Any = importlib.import_module("openvino_genai")
    limit = {"INFERENCE_NUM_THREADS": settings["threads"]} if settings["threads"] else {}
    pipeline = genai.LLMPipeline(
        settings["model"], "CPU", ATTENTION_BACKEND=settings["backend"], **limit
    )

    class Watch(genai.StreamerBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def write(self, token: int | list[int]) -> Any:
            self.times += [clock()] * (len(token) if isinstance(token, list) else 1)
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is held back."""

    def answer(prompt: list[int], count: int) -> Sequence[float]:
        watch = Watch()
        tokens = genai.TokenizedInputs(
            openvino.Tensor(np.array([prompt], np.int64)),
            openvino.Tensor(np.ones((1, len(prompt)), np.int64)),
        )
        pipeline.generate(
            tokens, max_new_tokens=count, ignore_eos=True, do_sample=False, streamer=watch
        )
        return watch.times

    return answer


if __name__ == "__main__":
    sys.exit(serve(load, ("openvino", "openvino-genai", "optimum-intel", "nncf")))
