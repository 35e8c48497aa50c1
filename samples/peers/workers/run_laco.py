"""Ours: the engine of a bundle, from ids to ids. Runs where laco-deploy is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from laco_runtimes.engines.base import LanguageModel, LoadRequest
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import EngineFacts, MergerFacts, Variant
from samples.peers.workers.serve import Answer, Clock, serve


def _openvino(root: Path, facts: EngineFacts, threads: int | None) -> LanguageModel:
    from laco_runtimes.engines.openvino import load as load_engine

    variant = Variant(
        name="laco",
        mergers=(MergerFacts(kind="laco", after_block=1, ratio=2),),
        merged_grid=(1, 1),
        vision_encoder="stand_in.xml",
        latency_only=True,
    )
    return load_engine(LoadRequest(root, facts, variant, "cpu", threads)).language


def _onnxruntime(root: Path, facts: EngineFacts, threads: int | None) -> LanguageModel:
    from laco_runtimes.engines.onnxruntime import open_language

    form = DecoderForm(facts.decoder_flavour)
    paths = root / facts.decoder, root / facts.embed_tokens
    return open_language(*paths, facts.language, form, threads=threads)


ENGINES: Mapping[str, Callable[[Path, EngineFacts, int | None], LanguageModel]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}


def load(settings: Mapping[str, Any], clock: Clock) -> Answer:
    """See `serve.Load`; `backend` is the engine."""
    root = Path(settings["model"])
    facts = EngineFacts.model_validate_json((root / "facts.json").read_bytes())
    language = ENGINES[settings["backend"]](root, facts, settings["threads"])

    def answer(prompt: list[int], count: int) -> Sequence[float]:
        language.rewind(0)
        token = int(np.argmax(language.prefill(language.embed(prompt))))
        times = [clock()]
        for _ in range(count - 1):
            token = int(np.argmax(language.step(token)))
            times.append(clock())
        return times

    return answer


def _packages() -> tuple[str, ...]:
    names = {one.metadata["Name"] for one in metadata.distributions()}
    return tuple(name for name in ("laco-deploy", "onnxruntime", "openvino") if name in names)


if __name__ == "__main__":
    sys.exit(serve(load, _packages()))
