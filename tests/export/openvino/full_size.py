"""The decoder of Qwen2.5-0.5B's shape, compiled in int8, and what its layers became.

python -m tests.export.openvino.full_size FOLDER

Prints the operators as JSON; the files stay.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from laco_deploy.model.presets import LANGUAGE_PRESETS
from laco_export.graphs import DecoderGraph
from laco_export.onnx_writer import write_graph
from laco_export.targets import CompileRequest
from laco_export.targets.openvino import TARGET
from laco_runtimes import graphs
from laco_runtimes.manifest import LanguageFacts, VisionFacts

VISION = VisionFacts(model_type="none", blocks=1, width=1, image_size=1, patch_size=1)


def main(folder: str) -> None:
    from tests.export.openvino.test_fusion import fused

    root = Path(folder)
    config: Any = LANGUAGE_PRESETS["qwen2.5-0.5b"].config()
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(config)
    model.eval()
    facts = LanguageFacts(
        model_type="qwen2",
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
    )
    decoder = DecoderGraph(model.model, model.lm_head, head_dim=facts.head_dim, rope_theta=1e6)
    write_graph(decoder, graphs.decoder(facts), root / "onnx")
    del model, decoder
    path = TARGET.compile(
        CompileRequest(
            root=root,
            onnx="onnx/decoder.onnx",
            spec=graphs.decoder(facts),
            language=facts,
            vision=VISION,
            precision="int8",
        )
    )
    print(json.dumps(fused(root / path)))


if __name__ == "__main__":
    main(sys.argv[1])
