"""One encoder of full width with one merger: forward, export, and the same again on ONNX Runtime.

python -m tests.model.full_width PRESET KIND FOLDER

Prints its figures as JSON. The graph goes into FOLDER and is taken away again: it has a gigabyte.
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

from laco_deploy.benchmark.memory import peak_resident_bytes
from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.mergers import ZeroInitLinear
from laco_deploy.model.presets import VISION_PRESETS
from laco_export.graphs import VisionGraph
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_runtimes import graphs
from tests.export.static_graphs import assert_static_but_for_tiles

TEXT = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "vocab_size": 64,
}


def build(preset: str, kind: str) -> LacoForConditionalGeneration:
    vision = VISION_PRESETS[preset].config()
    torch.manual_seed(0)
    model = LacoForConditionalGeneration(
        LacoConfig(
            vision_config=vision.to_dict(),
            text_config=TEXT,
            mergers=[{"after_block": vision.num_hidden_layers // 4, "kind": kind}],
            image_token_id=3,
        )
    )
    for module in model.modules():
        if isinstance(module, ZeroInitLinear):  # or nothing of the branch would show
            torch.nn.init.normal_(module.weight, std=0.02)
    return model.eval()


def main(preset: str, kind: str, folder: str) -> None:
    model = build(preset, kind)
    config = model.config
    pixels = torch.randn(1, 3, config.image_size, config.image_size)
    start = time.perf_counter()
    with torch.no_grad():
        expected = model.get_image_features(pixels).numpy()
    forward_s, forward_peak = time.perf_counter() - start, peak_resident_bytes()
    spec = graphs.vision_encoder(config.image_size, config.tokens_per_tile, config.text.hidden_size)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        start = time.perf_counter()
        path = write_graph(VisionGraph(model), spec, Path(place), allowed_ops=ENCODER_OPS)
        export_s, export_peak = time.perf_counter() - start, peak_resident_bytes()
        assert_static_but_for_tiles(path)
        del model
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        [found] = session.run(None, {"pixel_values": pixels.numpy()})
    figures = {
        "after_block": config.merger_specs[0].after_block,
        "tokens": found.shape[1],
        "forward_s": forward_s,
        "export_s": export_s,
        "forward_peak_gb": (forward_peak or 0) / 1e9,
        "export_peak_gb": (export_peak or 0) / 1e9,
        "difference": float(np.abs(found - expected).max()),
        "largest": float(np.abs(expected).max()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
