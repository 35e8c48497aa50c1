"""Every encoder with every merger: it runs, learns, is saved and loaded, and exports.

Reduced width here, with the published shapes' peculiarities: an odd grid (SigLIP), a CLS token
(InternViT). At full width each runs in a process of its own, on demand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.model.mergers import MERGERS
from laco_deploy.model.towers import TOWERS, find_tower
from laco_export.audit import EncoderAudit, audit_encoder
from laco_export.graphs import VisionGraph
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_export.ranges import measure_ranges
from laco_export.targets.openvino_activations import int8_activations
from laco_runtimes import graphs
from laco_runtimes.engines.openvino import openvino_core
from tests.export.static_graphs import assert_static_but_for_tiles
from tests.model.tower_samples import KINDS, laco_config, pixels, randomize

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 4
SIDES = {"aimv2_vision_model": 8, "internvl_vision": 8, "siglip_vision_model": 9}
"""Of the patch grid."""
PLACES = {"quarter": 1, "half": 2, "behind": BLOCKS}

SHIFTS_OF_ALL_KEYS = ("key.3.bias", "attention.key.bias")
"""Of `token_packer`. What is added to every key of a query alike is taken out by softmax."""

FAMILY = list(product(KINDS, MERGERS, PLACES.values()))
STACKS = {
    tower: [
        {"after_block": k, "kind": (*MERGERS, *MERGERS)[3 * row + column]}
        for column, k in enumerate(PLACES.values())
    ]
    for row, tower in enumerate(KINDS)
}
"""Three mergers in one encoder; among the three encoders every kind of merger."""

FULL_WIDTH = ("aimv2-large-448", "siglip-so400m-384", "internvit-300m-448")


def random_model(tower: str, mergers: list[dict[str, Any]]) -> LacoForConditionalGeneration:
    return randomize(LacoForConditionalGeneration(laco_config(tower, mergers, blocks=BLOCKS)))


def merged_tokens(tower: str, *ratios: int) -> int:
    side = SIDES[tower]
    for ratio in ratios:
        side = -(-side // ratio)  # a window that is not full counts
    return side * side


def inputs(model: LacoForConditionalGeneration, tokens: int) -> dict[str, torch.Tensor]:
    """Two prompts of an image and three more tokens."""
    image = model.config.image_token_id
    ids = torch.tensor([[5, *[image] * tokens, 6, 7], [8, *[image] * tokens, 9, 5]])
    return {"input_ids": ids, "pixel_values": pixels(model.config.vision)}


def check_runs_learns_and_comes_back(
    model: LacoForConditionalGeneration, tokens: int, folder: Path
) -> None:
    batch = inputs(model, tokens)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, -100)
    output = model(**batch, labels=labels)
    assert model.get_image_features(batch["pixel_values"]).shape == (2, tokens, 24)
    assert bool(output.logits.isfinite().all())

    output.loss.backward()
    weights = dict(model.model.vision_encoder.mergers.named_parameters())
    gradients = {name: weight.grad for name, weight in weights.items()}
    largest = max([float(one.abs().max()) for one in gradients.values() if one is not None] + [0])
    for name, gradient in gradients.items():
        assert gradient is not None, name
        most = float(gradient.abs().max())
        if name.endswith(SHIFTS_OF_ALL_KEYS):
            assert most < 1e-4 * largest, name
        else:
            assert most > 0, name

    model.save_pretrained(folder)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    again = LacoForConditionalGeneration.from_pretrained(folder).eval()
    assert again.config.merger_specs == model.config.merger_specs
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, output.logits)


def check_exports(model: LacoForConditionalGeneration, tokens: int, folder: Path) -> set[str]:
    config = model.config
    spec = graphs.vision_encoder(config.image_size, tokens, config.text.hidden_size)
    path = write_graph(VisionGraph(model), spec, folder, allowed_ops=ENCODER_OPS)
    used = assert_static_but_for_tiles(path)
    check_audit(audit_encoder(path), model)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for tiles in (1, 3):
        images = pixels(config.vision, tiles)
        with torch.no_grad():
            expected = model.get_image_features(images).numpy()
        [found] = session.run(None, {"pixel_values": images.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    check_rounds(path, images.numpy())
    return used


def check_rounds(path: Path, images: NDArray[np.float32]) -> None:
    """OpenVINO knows every layer of the graph by the name of what enters it."""
    ranges = path.with_name("ranges.npz")
    features = measure_ranges(path, images, ranges, lambda: None)
    model = openvino_core().read_model(path)
    int8_activations(model, SimpleNamespace(calibration=ranges))  # type: ignore[arg-type]
    assert any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    rounded = openvino_core().compile_model(model, "CPU")(images)[0]
    apart = (rounded * features).sum() / np.linalg.norm(rounded) / np.linalg.norm(features)
    assert apart > 0.98


def check_audit(audit: EncoderAudit, model: LacoForConditionalGeneration) -> None:
    """The merges read back from the graph are those of the configuration."""
    config = model.config
    prefix = find_tower(config.vision.model_type).prefix_tokens
    grid, expected = config.patch_grid, []
    for spec in config.merger_specs:
        merged = spec.merged_grid(grid)
        led_past = prefix if spec.after_block < config.vision.num_hidden_layers else 0
        tokens = tuple(led_past + rows * columns for rows, columns in (grid, merged))
        expected.append((spec.after_block, tokens))
        grid = merged
    assert [(merge.after_block, merge.tokens) for merge in audit.merges] == expected


def test_the_family_is_complete() -> None:
    assert set(KINDS) == set(TOWERS) == set(SIDES)
    assert len(FAMILY) == 3 * 7 * 3
    assert {one["kind"] for stack in STACKS.values() for one in stack} == set(MERGERS)
    config = laco_config("siglip_vision_model", [])
    assert config.patch_grid == (9, 9)


@pytest.mark.parametrize(("tower", "kind", "after_block"), FAMILY)
def test_every_encoder_runs_learns_and_comes_back_with_every_merger(
    tower: str, kind: str, after_block: int, tmp_path: Path
) -> None:
    model = random_model(tower, [{"after_block": after_block, "kind": kind}])
    check_runs_learns_and_comes_back(model, merged_tokens(tower, 2), tmp_path)


@pytest.mark.parametrize("ratio", [3, 4])
@pytest.mark.parametrize(("tower", "kind"), list(zip(KINDS * 3, MERGERS, strict=False)))
def test_other_ratios_run_learn_and_come_back(
    tower: str, kind: str, ratio: int, tmp_path: Path
) -> None:
    model = random_model(tower, [{"after_block": 2, "kind": kind, "ratio": ratio}])
    check_runs_learns_and_comes_back(model, merged_tokens(tower, ratio), tmp_path)


@pytest.mark.parametrize(
    "tower",
    [
        one if one == "internvl_vision" else pytest.param(one, marks=pytest.mark.full)
        for one in KINDS
    ],
)
def test_several_mergers_in_one_encoder_work_everywhere(tower: str, tmp_path: Path) -> None:
    model = random_model(tower, STACKS[tower])
    tokens = merged_tokens(tower, 2, 2, 2)
    check_runs_learns_and_comes_back(model, tokens, tmp_path / "saved")
    used = check_exports(model, tokens, tmp_path / "exported")
    # CLS needs room, and the odd grid its last row and column once more.
    assert ("Pad" in used) == (tower == "internvl_vision")
    assert {"Slice", "Concat"} <= used or tower == "aimv2_vision_model"


@pytest.mark.full
@pytest.mark.parametrize(("tower", "kind", "after_block"), FAMILY)
def test_every_encoder_exports_with_every_merger(
    tower: str, kind: str, after_block: int, tmp_path: Path
) -> None:
    model = random_model(tower, [{"after_block": after_block, "kind": kind}])
    check_exports(model, merged_tokens(tower, 2), tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("ratio", [3, 4])
@pytest.mark.parametrize(("tower", "kind"), list(zip(KINDS * 3, MERGERS, strict=False)))
def test_other_ratios_export(tower: str, kind: str, ratio: int, tmp_path: Path) -> None:
    model = random_model(tower, [{"after_block": 2, "kind": kind, "ratio": ratio}])
    check_exports(model, merged_tokens(tower, ratio), tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["laco", "token_packer"])
@pytest.mark.parametrize("tower", KINDS)
def test_one_kind_twice_exports(tower: str, kind: str, tmp_path: Path) -> None:
    model = random_model(tower, [{"after_block": k, "kind": kind} for k in (1, 2)])
    check_exports(model, merged_tokens(tower, 2, 2), tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("part", [4, 2, 1])
@pytest.mark.parametrize("kind", MERGERS)
@pytest.mark.parametrize("preset", FULL_WIDTH)
def test_full_width_runs_learns_comes_back_and_exports(
    preset: str, kind: str, part: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # A process of its own: its peak is that of this model, and its memory comes back.
    paths = [str(ROOT / folder) for folder in (".", "export", "runtimes")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.full_width", preset, kind, str(part), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        check=True,
    )
    figures = json.loads(done.stdout)
    with capsys.disabled():
        steps = ("forward", "backward", "save_and_load", "export")
        costs = (f"{s} {figures[f'{s}_s']:.1f} s {figures[f'{s}_peak_gb']:.1f} GB" for s in steps)
        print(
            f"\n{preset} {kind} after block {figures['after_block']}: {', '.join(costs)}, "
            f"onnxruntime within {figures['difference']:.1e} of {figures['largest']:.2f}"
        )
    assert figures["tokens"] == {"siglip-so400m-384": 196}.get(preset, 256)
    assert figures["difference"] < 1e-4 * figures["largest"]
