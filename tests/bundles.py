"""A small model with random weights, as a checkpoint and as a bundle, for tests of any part."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import nn

from laco_deploy.exporting import BASELINES, export_checkpoint
from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.checkpoint import save_checkpoint
from laco_deploy.parity_data import parity_samples
from laco_deploy.training.tokenizer import IMAGE_TOKEN, train_tokenizer
from laco_export import writing
from laco_export.exporter import ExportResult
from laco_export.job import ParitySample
from laco_export.onnx_writer import write_graph
from laco_export.parity.plan import ParityPlan
from laco_runtimes.graphs import GraphSpec
from laco_runtimes.images import Preprocessing
from laco_runtimes.manifest import Manifest
from tests.shared import made_once

TINY = Path(__file__).resolve().parents[1] / "samples" / "laco-tiny"
"""The shipped checkpoint."""
TINY_TARGETS = ("openvino", "onnxruntime")

IMAGE_SIZE = 56

IMAGES = 8
PLAN = ParityPlan(min_images=IMAGES, tokens=16, pytorch=4)
"""Less than an export compares by default: random weights have no rare cases to find."""

PROMPTS = ("What is it?", "How many dots are there in the picture?", "Name the colour.", "Where?")

# Wide enough for the two best logits to be apart: with random weights as small as those a training
# starts from, answers hang on the last bit.
SPREAD = 0.25


def random_config(*, blocks: int = 3, layers: int = 2, vocab_size: int = 320) -> LacoConfig:
    """8 x 8 patches, one merger after block 1: 16 visual tokens per image."""
    return LacoConfig(
        vision_config={
            "model_type": "aimv2_vision_model",
            "hidden_size": 64,
            "num_hidden_layers": blocks,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": IMAGE_SIZE,
            "patch_size": 7,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,  # heads of 16, the least that GroupQueryAttention rotates
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": vocab_size,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
        },
        mergers=[{"after_block": 1}],
    )


def random_model(config: LacoConfig, seed: int) -> LacoForConditionalGeneration:
    """All weights random, also those that a fresh model starts at zero or one."""
    torch.manual_seed(seed)
    model = LacoForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            nn.init.normal_(weight, mean=middle, std=SPREAD)
    return model.eval()


def make_random_checkpoint(folder: Path, seed: int = 1) -> Path:
    """Write a checkpoint of `random_model` with a tokenizer of its own."""
    tokenizer = train_tokenizer([*PROMPTS, "system user assistant You are a helpful assistant."])
    config = random_config(vocab_size=len(tokenizer))
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    save_checkpoint(
        folder,
        model=random_model(config, seed),
        tokenizer=tokenizer,
        preprocessing=Preprocessing(
            image_size=IMAGE_SIZE, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28)
        ),
    )
    return folder


def random_samples(count: int = IMAGES, seed: int = 0) -> list[ParitySample]:
    """Colour gradients with noise, no two alike, none of the encoder's own size."""
    random = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0, 1, 70), np.linspace(0, 1, 64))
    samples = []
    for index in range(count):
        slopes, start = random.uniform(-1, 1, (2, 3)), random.uniform(0, 1, 3)
        gradient = start + across[..., None] * slopes[0] + down[..., None] * slopes[1]
        noisy = np.clip(gradient + random.normal(0, 0.2, gradient.shape), 0, 1)
        image = Image.fromarray((noisy * 255).astype(np.uint8))
        samples.append(ParitySample(f"image {index + 1}", image, PROMPTS[index % len(PROMPTS)]))
    return samples


def export_random_bundle(
    checkpoint: Path,
    out: Path,
    target: str,
    *,
    baselines: Sequence[str] = (),
    graphs_of: Path | None = None,
    **options: Any,
) -> ExportResult:
    """Export a checkpoint that `make_random_checkpoint` wrote.

    Args:
        graphs_of: for `reused_graphs`.
        **options: further arguments of `export_checkpoint`.
    """
    arguments = {"parity_samples": random_samples(), "plan": PLAN, **options}
    with reused_graphs(graphs_of) if graphs_of else nullcontext():
        return export_checkpoint(checkpoint, out, target=target, baselines=baselines, **arguments)


@contextmanager
def reused_graphs(source: Path) -> Iterator[None]:
    """While this is open, exports copy ONNX graphs of the same checkpoint where they would trace.

    Args:
        source: folder of graphs, `RandomBundles.graphs`, or a bundle of a `RandomBundles`. What is
            not there yet is traced, and put there.
    """
    store = source.parent / "graphs" if (source / "laco.json").exists() else source

    def copy_graph(
        module: nn.Module, spec: GraphSpec, folder: Path, *, stem: str | None = None, **how: Any
    ) -> Path:
        inside = Path("onnx") if folder.name == "onnx" else Path("baseline") / folder.name
        kept, name = store / inside, stem or spec.name
        # A flavour shares the weights of another graph, and may have added to their file.
        files = [
            f"{name}.onnx",
            f"{how['share'].name if how.get('share') else f'{name}.onnx'}.data",
        ]
        static = [one for tensor in spec.inputs for one in tensor.dims if isinstance(one, int)]
        mark = kept / f"{name}.{'-'.join(map(str, static[-1:]))}"  # the capacity of a cache
        if mark.exists():
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(kept / file, folder / file)
            return folder / files[0]
        path = write_graph(module, spec, folder, stem=stem, **how)
        kept.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(folder / file, kept / file)
        mark.touch()
        return path

    with mock.patch.object(writing, "write_graph", copy_graph):
        yield


class RandomBundles:
    """Bundles of one random checkpoint, with all baselines; each is made when first asked for.

    `bundles("openvino")` is the folder of the bundle, `bundles.manifest("openvino")` what its
    export returned, `bundles.checkpoint` where all of them come from, `bundles.graphs` their graphs
    in fp32.

    Args:
        folder: of this process alone; tests may add to `graphs`.
        shared: of all processes of a run. Each export happens there once, and is copied.
    """

    def __init__(self, folder: Path, shared: Path) -> None:
        self._folder, self._shared = folder, shared
        self.checkpoint = folder / "checkpoint"
        shutil.copytree(made_once(shared / "checkpoint", make_random_checkpoint), self.checkpoint)
        self.graphs = folder / "graphs"

    def __call__(self, target: str) -> Path:
        """The bundle for a target. Tests must not change it."""
        own = self._folder / target
        if not own.exists():
            with FileLock(self._shared / "export.lock"):
                made = made_once(self._shared / target, lambda out: self._export(out, target))
                shutil.copytree(made, own)
                if not self.graphs.exists():
                    shutil.copytree(self._shared / "graphs", self.graphs)
        return own

    def manifest(self, target: str) -> Manifest:
        """As the export returned it, whatever the bundle holds."""
        self(target)
        return Manifest.model_validate_json(self._returned(target).read_text())

    def _returned(self, target: str) -> Path:
        return self._shared / f"{target}.returned.json"

    def _export(self, out: Path, target: str) -> None:
        result = export_random_bundle(
            self._shared / "checkpoint",
            out,
            target,
            baselines=tuple(BASELINES),
            graphs_of=self._shared / "graphs",
        )
        self._returned(target).write_text(result.manifest.model_dump_json())


def export_tiny(folder: Path) -> dict[str, Path]:
    """Export the shipped checkpoint to every engine that needs no GPU.

    Returns:
        folders of the bundles by target.
    """
    shorter = ParityPlan(tokens=16, pytorch=4)  # every image, but answers of a few words
    with reused_graphs(folder / "graphs"):
        return {
            target: export_checkpoint(
                *(TINY, folder / target),
                target=target,
                parity_samples=parity_samples(TINY),
                plan=shorter,
            ).path
            for target in TINY_TARGETS
        }
