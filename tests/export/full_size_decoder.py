"""A decoder of Qwen2.5-0.5B's width in two flavours, and a pass of one on ONNX Runtime.

python -m tests.export.full_size_decoder FOLDER

It has four layers more than Qwen2.5-0.5B, so that its weights pass 2 GiB. Prints its figures as
JSON; the graphs are taken away again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from laco_deploy.benchmark.memory import peak_resident_bytes
from laco_deploy.model.presets import LANGUAGE_PRESETS
from laco_export.flavours import FLAVOURS
from laco_export.graphs import DecoderGraph
from laco_export.onnx_writer import write_graph
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import LanguageFacts

LAYERS = 28
TOKENS = 5


def main(folder: str) -> None:
    config = LANGUAGE_PRESETS["qwen2.5-0.5b"].config()
    assert isinstance(config, Qwen2Config)
    config.num_hidden_layers = LAYERS
    config.layer_types = ["full_attention"] * LAYERS
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    model.eval()  # type: ignore[no-untyped-call]
    facts = LanguageFacts(
        model_type="qwen2",
        layers=LAYERS,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
    )
    embeds = torch.randn(1, TOKENS, facts.hidden_size)
    with torch.no_grad():
        expected = model(inputs_embeds=embeds, logits_to_keep=1).logits[0, -1].numpy()
    figures: dict[str, float] = {
        "weight_bytes": 4 * sum(weight.numel() for weight in model.parameters())
    }
    with tempfile.TemporaryDirectory(dir=folder) as place:
        share: Path | None = None
        for name in ("stateful", "contrib"):
            start = time.perf_counter()
            flavour, form = FLAVOURS[name], DecoderForm(FLAVOURS[name].name)
            graph = DecoderGraph(
                model.model,
                model.lm_head,
                head_dim=facts.head_dim,
                rope_theta=1e6,
                flavour=name,
                positions=flavour.positions(facts, form),
            )
            path = write_graph(
                graph,
                flavour.spec(facts, form),
                Path(place),
                opset=flavour.opset,
                stem=flavour.stem,
                share=share,
            )
            share = share or path
            figures[f"{name}_s"] = time.perf_counter() - start
        figures["peak_bytes"] = peak_resident_bytes() or 0
        figures["data_bytes"] = sum(one.stat().st_size for one in Path(place).glob("*.data"))
        del model, graph
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_prepacking", "1")  # no second copy
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        empty = np.zeros((1, facts.kv_heads, 0, facts.head_dim), np.float32)
        inputs = {one.name: empty for one in session.get_inputs()}
        inputs["inputs_embeds"] = embeds.numpy()
        inputs["attention_mask"] = np.ones((1, TOKENS), np.int64)
        found = session.run(["logits"], inputs)[0][0, 0]
    figures["difference"] = float(np.abs(found - expected).max())
    figures["largest"] = float(np.abs(expected).max())
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
