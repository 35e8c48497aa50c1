"""llama.cpp through the C interface that llama-cpp-python exposes.

Its `Llama` class is passed by: it copies all logits of a prompt to Python, and wants a vocabulary
that a model of random weights does not have.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samples.peers.workers.serve import Answer, Clock, serve


def load(settings: Mapping[str, Any], clock: Clock) -> Answer:
    """See `serve.Load`.

    Raises:
        RuntimeError: llama.cpp takes neither the file nor the context.
    """
    llama: Any = importlib.import_module("llama_cpp.llama_cpp")
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(settings["model"].encode(), params)
    if not model:
        raise RuntimeError("llama.cpp cannot load the model")
    options = llama.llama_context_default_params()
    options.n_ctx = options.n_batch = settings["context"]
    if settings["threads"]:
        options.n_threads = options.n_threads_batch = settings["threads"]
    context = llama.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("llama.cpp cannot make a context")
    memory = llama.llama_get_memory(context)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def decode(ids: list[int]) -> int:
        tokens = (llama.llama_token * len(ids))(*ids)
        code = llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(ids)))
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = llama.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    def answer(prompt: list[int], count: int) -> Sequence[float]:
        llama.llama_memory_clear(memory, True)
        token = decode(prompt)
        times = [clock()]
        for _ in range(count - 1):
            token = decode([token])
            times.append(clock())
        return times

    return answer


if __name__ == "__main__":
    sys.exit(serve(load, ("llama-cpp-python",)))
