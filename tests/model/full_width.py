"""One encoder of full width with one merger: forward, backward, saved and read back, exported, and
the same again on ONNX Runtime.

python -m tests.model.full_width PRESET KIND PART FOLDER

The merger stands after 1/PART of the blocks. Prints its figures as JSON. Weights and graph go into
FOLDER and are taken away again: they have a gigabyte each.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

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


def build(preset: str, kind: str, part: int) -> LacoForConditionalGeneration:
    vision = VISION_PRESETS[preset].config()
    torch.manual_seed(0)
    model = LacoForConditionalGeneration(
        LacoConfig(
            vision_config=vision.to_dict(),
            text_config=TEXT,
            mergers=[{"after_block": vision.num_hidden_layers // part, "kind": kind}],
            image_token_id=3,
        )
    )
    for module in model.modules():
        if isinstance(module, ZeroInitLinear):  # or nothing of the branch would show
            torch.nn.init.normal_(module.weight, std=0.02)
    return model.eval()


class Stopwatch:
    """Seconds and peak memory of steps, by name."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.figures[f"{name}_s"] = time.perf_counter() - start
        self.figures[f"{name}_peak_gb"] = (peak_resident_bytes() or 0) / 1e9


def learn(model: LacoForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Forward and backward; every weight of encoder, mergers and projector gets a gradient."""
    features = model.get_image_features(pixels)
    features.square().mean().backward()
    for part in (model.model.vision_encoder, model.model.projector):
        for name, weight in part.named_parameters():
            assert weight.grad is not None, name
            assert bool(weight.grad.isfinite().all()), name
    model.zero_grad(set_to_none=True)
    return features.detach()


def main(preset: str, kind: str, part: str, folder: str) -> None:
    model = build(preset, kind, int(part))
    config = model.config
    pixels = torch.randn(1, 3, config.image_size, config.image_size)
    watch = Stopwatch()
    with watch.step("forward"), torch.no_grad():
        expected = model.get_image_features(pixels)
    with watch.step("backward"):
        assert torch.allclose(learn(model, pixels), expected, rtol=1e-4, atol=1e-5)
    spec = graphs.vision_encoder(config.image_size, config.tokens_per_tile, config.text.hidden_size)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with watch.step("save_and_load"):
            model.save_pretrained(Path(place) / "saved")
            again = LacoForConditionalGeneration.from_pretrained(Path(place) / "saved").eval()
        for name, weight in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight), name
        del model, weight
        with torch.no_grad():
            # Not bit for bit: a convolution takes another kernel where a weight lies otherwise in
            # memory (InternViT, c_abstractor after block 6: 7e-7 of 0.65).
            assert torch.allclose(again.get_image_features(pixels), expected, rtol=1e-4, atol=1e-5)
        with watch.step("export"):
            path = write_graph(VisionGraph(again), spec, Path(place), allowed_ops=ENCODER_OPS)
        assert_static_but_for_tiles(path)
        del again
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        [found] = session.run(None, {"pixel_values": pixels.numpy()})
    figures = {
        **watch.figures,
        "after_block": config.merger_specs[0].after_block,
        "tokens": found.shape[1],
        "difference": float(np.abs(found - expected.numpy()).max()),
        "largest": float(expected.abs().max()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
