"""The whole model: where mergers stand, fresh weights, saving, generation, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import Aimv2VisionModel, AutoConfig, AutoModelForImageTextToText

from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.checkpoint import load_checkpoint, save_checkpoint
from laco_deploy.model.config import MergerSpec
from laco_runtimes.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from tests.bundles import make_random_checkpoint, random_config, random_model

BLOCKS = 3


def config(mergers: list[dict[str, Any]]) -> LacoConfig:
    values = random_config(blocks=BLOCKS).to_dict()
    return LacoConfig.from_dict({**values, "mergers": mergers})


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("after_block", [1, 2])
def test_fresh_encoder_is_average_pooling_between_its_blocks(after_block: int) -> None:
    # "After block k" counts from 1: blocks[k - 1] is the last to see all patches.
    torch.manual_seed(0)
    encoder = LacoForConditionalGeneration(config([{"after_block": after_block}])).model
    tower = encoder.vision_encoder.tower
    tokens = tower.embeddings(pixels())
    for block in tower.encoder.layers[:after_block]:
        tokens = block(tokens)
    image = tokens.transpose(1, 2).reshape(2, -1, 8, 8)
    tokens = functional.avg_pool2d(image, 2).flatten(2).transpose(1, 2)
    for block in tower.encoder.layers[after_block:]:
        tokens = block(tokens)
    expected = tower.rms_norm(tokens)
    torch.testing.assert_close(encoder.vision_encoder(pixels()), expected, rtol=0, atol=1e-6)


def test_merger_after_the_last_block_stands_behind_the_final_norm() -> None:
    torch.manual_seed(0)
    encoder = LacoForConditionalGeneration(config([{"after_block": BLOCKS}])).model.vision_encoder
    image = encoder.tower(pixels()).last_hidden_state.transpose(1, 2).reshape(2, -1, 8, 8)
    expected = functional.avg_pool2d(image, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(pixels()), expected, rtol=0, atol=1e-6)


def test_without_mergers_the_tower_is_transformers_own() -> None:
    model = random_model(config([]), seed=0)
    tower = Aimv2VisionModel(model.config.vision)
    tower.load_state_dict(model.model.vision_encoder.tower.state_dict())
    with torch.no_grad():
        assert torch.equal(
            model.model.vision_encoder(pixels()), tower.eval()(pixels()).last_hidden_state
        )


def test_two_mergers_shrink_the_grid_twice() -> None:
    both = config([{"after_block": 1}, {"after_block": 2}])
    assert both.merged_grid == (2, 2)
    features = LacoForConditionalGeneration(both).get_image_features(pixels())
    assert features.shape == (2, 4, both.text.hidden_size)


def test_gradient_reaches_the_merger_through_frozen_blocks() -> None:
    model = random_model(config([{"after_block": 1}]), seed=0)
    for weight in model.model.vision_encoder.tower.parameters():
        weight.requires_grad_(False)
    model.get_image_features(pixels()).sum().backward()
    merger = model.model.vision_encoder.mergers["1"]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in merger.parameters())


def test_saved_model_comes_back_bit_for_bit_through_the_auto_classes(tmp_path: Path) -> None:
    model = random_model(config([{"after_block": 2, "norm": "none"}]), seed=3)
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.bin")] == []
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LacoConfig)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.merger_specs == (MergerSpec(after_block=2, norm="none"),)
    for (name, old), (_, new) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(old, new), name


def test_generation_with_cache_equals_a_full_forward_each_step() -> None:
    model = random_model(config([{"after_block": 1}]), seed=1)
    image = model.config.image_token_id = 3
    ids = torch.tensor([[5, *[image] * 16, 7, 8]])
    fast = model.generate(
        input_ids=ids, pixel_values=pixels(1), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    slow = ids
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=slow, pixel_values=pixels(1)).logits[:, -1]
            slow = torch.cat([slow, logits.argmax(-1, keepdim=True)], dim=1)
    assert fast.tolist() == slow.tolist()


def test_wrong_number_of_image_tokens_is_an_error() -> None:
    model = random_model(config([{"after_block": 1}]), seed=1)
    model.config.image_token_id = 3
    with pytest.raises(ValueError, match="hold 4 image tokens, the images give 16"):
        model(input_ids=torch.tensor([[5, 3, 3, 3, 3]]), pixel_values=pixels(1))


@pytest.mark.parametrize(
    ("mergers", "message"),
    [
        ([{"after_block": 4}], "has 3 blocks"),
        ([{"after_block": 0}], "counted from 1"),
        ([{"after_block": 1, "ratio": 3}], "8x8 patch grid does not divide into 3x3"),
        ([{"after_block": 2}, {"after_block": 1}], "rising order"),
        ([{"after_block": 1, "kind": "lacoo"}], "Did you mean 'laco'"),
        ([{"after_block": 1, "ratio": 1}], "at least 2"),
        ([{"after_block": 1, "nrom": "none"}], "unknown merger setting 'nrom'"),
    ],
)
def test_impossible_mergers_are_refused(mergers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(mergers)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_random_checkpoint(tmp_path / "ckpt")


def test_checkpoint_loads_with_its_template_and_preprocessing(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    assert loaded.preprocessing.mean == (0.48, 0.46, 0.41)
    assert loaded.template.image_token_id == loaded.config.image_token_id
    assert not loaded.model.training


def test_checkpoint_replaces_a_checkpoint_and_nothing_else(checkpoint: Path) -> None:
    before = load_checkpoint(checkpoint).model.lm_head.weight.sum()
    make_random_checkpoint(checkpoint, seed=2)
    assert load_checkpoint(checkpoint).model.lm_head.weight.sum() != before
    other = checkpoint.parent / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("irreplaceable")
    with pytest.raises(CheckpointError, match="left alone"):
        make_random_checkpoint(other)
    assert (other / "chapter.txt").read_text() == "irreplaceable"
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["ckpt", "thesis"]


def test_failed_save_leaves_the_old_checkpoint(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    weights = (checkpoint / "model.safetensors").read_bytes()

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    class Tokenizer:
        eos_token_id = pad_token_id = 0

        def save_pretrained(self, folder: Path) -> None:
            """Nothing to write."""

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(
            checkpoint,
            model=random_model(loaded.config, seed=9),
            tokenizer=Tokenizer(),  # type: ignore[arg-type]
            preprocessing=loaded.preprocessing,
            extra=fail,
        )
    assert (checkpoint / "model.safetensors").read_bytes() == weights
    assert [p.name for p in checkpoint.parent.iterdir()] == ["ckpt"]


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _other_width(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["mergers"] = []
    (folder / "config.json").write_text(json.dumps(values))


def _other_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llava"}')


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _bad_k(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["mergers"] = [{"after_block": 40}]
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_without_weights, CheckpointNotFoundError, "holds no weights"),
        (_cut_weights, CheckpointError, "cannot be read"),
        (_other_width, CheckpointError, "unexpected keys"),
        (_other_type, CheckpointError, "model type 'llava'"),
        (_no_json, CheckpointError, "not JSON"),
        (_bad_k, CheckpointError, "has 3 blocks"),
        (lambda folder: (folder / "tokenizer.json").unlink(), CheckpointError, "no tokenizer.json"),
    ],
)
def test_damaged_checkpoints_are_refused(
    checkpoint: Path, damage: Any, error: type[Exception], message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(error, match=message):
        load_checkpoint(checkpoint)


def test_missing_checkpoint_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="laco train"):
        load_checkpoint(tmp_path / "nothing")
