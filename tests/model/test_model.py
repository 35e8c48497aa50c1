"""The whole model: where mergers stand, fresh weights, saving, generation, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional
from transformers import (
    Aimv2VisionModel,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.checkpoint import load_checkpoint, save_checkpoint
from laco_deploy.model.merger_spec import MergerSpec
from laco_runtimes.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from tests.bundles import make_random_checkpoint, random_config, random_model
from tests.model.older_checkpoint import rewrite_as_older
from tests.model.tower_samples import KINDS, laco_config

BLOCKS = 3


def config(mergers: list[dict[str, Any]]) -> LacoConfig:
    values = random_config(blocks=BLOCKS).to_dict()
    return LacoConfig.from_dict({**values, "mergers": mergers})


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("after_block", [1, 2])
def test_fresh_encoder_is_average_pooling_between_its_blocks(after_block: int) -> None:
    """H1. Put back (merging after `blocks[k]`, k + 1 blocks) the outputs differ: "after block k"
    counts from 1, so `blocks[k - 1]` is the last to see all patches."""
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


@pytest.mark.parametrize(("odd_grid", "side"), [("replicate", 3), ("crop", 2)])
def test_a_ratio_that_does_not_divide_pads_or_crops_as_it_says(odd_grid: str, side: int) -> None:
    odd = config([{"after_block": 1, "ratio": 3, "odd_grid": odd_grid}])
    assert (odd.merged_grid, odd.tokens_per_tile) == ((side, side), side * side)
    features = LacoForConditionalGeneration(odd).get_image_features(pixels())
    assert features.shape == (2, side * side, odd.text.hidden_size)


def test_patches_of_siglip_are_those_that_fit_whole() -> None:
    vision = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}
    for odd_grid, side in (("replicate", 14), ("crop", 13)):
        wide = LacoConfig(vision_config=vision, mergers=[{"after_block": 6, "odd_grid": odd_grid}])
        assert wide.patch_grid == (27, 27)
        assert wide.merged_grid == (side, side)


@pytest.mark.parametrize("kind", KINDS)
def test_any_tower_is_saved_and_checked_and_read_back(kind: str, tmp_path: Path) -> None:
    given = laco_config(kind, [{"after_block": 1}, {"after_block": 3}])
    model = random_model(given, seed=2)
    checkpoint = make_random_checkpoint(tmp_path / "checkpoint")
    model.save_pretrained(checkpoint)  # into the folder of another, for its tokenizer
    again = load_checkpoint(checkpoint)
    assert again.config.vision.model_type == kind
    side = given.image_size
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        found, expected = again.model.get_image_features(images), model.get_image_features(images)
    assert torch.equal(found, expected)


def test_gradient_reaches_the_merger_through_frozen_blocks() -> None:
    """H4. Put back (the encoder run under `torch.no_grad` because its blocks are frozen) the merger
    has no gradient."""
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
        (
            [{"after_block": k, "ratio": 3, "odd_grid": "crop"} for k in (1, 2)],
            r"2x2 patch grid is too small for 3x3 windows \(crop\)",
        ),
        ([{"after_block": k, "ratio": 4} for k in (1, 2, 3)], r"too small .* \(replicate\)"),
        ([{"after_block": 2}, {"after_block": 1}], "rising order"),
        ([{"after_block": 1, "kind": "lacoo"}], "Did you mean 'laco'"),
        ([{"after_block": 1, "ratio": 1}], "at least 2"),
        ([{"after_block": 1, "nrom": "none"}], "unknown merger setting 'nrom'"),
    ],
)
def test_impossible_mergers_are_refused(mergers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(mergers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mode": "any"}, "unknown image_mode 'any'.*Did you mean 'anyres'"),
        ({"max_tiles": 0}, "max_tiles is 0"),
        ({"max_tiles": "9"}, "max_tiles is '9'"),
        ({"video_pool_stride": 0}, "video_pool_stride is 0"),
        ({"image_newline": "yes"}, "image_newline is 'yes'"),
        ({"vision_config": {"model_type": "siglip_vision"}}, "Did you mean 'siglip_vision_model'"),
        ({"vision_config": {"hidden_size": 100, "num_attention_heads": 8}}, "encoder is 100 wide"),
        ({"text_config": {"hidden_size": 100, "num_attention_heads": 8}}, "model is 100 wide"),
        ({"vision_config": {"image_size": 8, "patch_size": 14}, "mergers": []}, "holds no patch"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LacoConfig(**settings)


def test_checkpoint_of_the_version_before_loads_unchanged(tmp_path: Path) -> None:
    today = load_checkpoint(make_random_checkpoint(tmp_path / "today"))
    older = load_checkpoint(rewrite_as_older(make_random_checkpoint(tmp_path / "older")))
    assert older.config.merger_specs == (MergerSpec(after_block=1),)
    assert (older.config.image_mode, older.config.image_newline) == ("square", False)
    assert older.config.token_layout == today.config.token_layout
    assert (older.preprocessing, older.template) == (today.preprocessing, today.template)
    ids = torch.tensor([[5, *[older.config.image_token_id] * 16, 7]])
    with torch.no_grad():
        logits = [c.model(input_ids=ids, pixel_values=pixels(1)).logits for c in (today, older)]
    assert torch.equal(*logits)


def test_shipped_checkpoint_loads() -> None:
    shipped = load_checkpoint(Path(__file__).parents[2] / "samples" / "laco-tiny")
    assert shipped.config.tokens_per_tile == 36
    assert shipped.config.text.vocab_size > shipped.config.image_token_id


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

    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(
            checkpoint,
            model=random_model(loaded.config, seed=9),
            tokenizer=AutoTokenizer.from_pretrained(checkpoint),
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


def _other_language_width(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["text_config"]["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(values))


def _more_blocks(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["vision_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(values))


def _no_mean(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5]}')


def _no_image_files(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").unlink()


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
        (_other_width, CheckpointError, "6 unexpected keys: model.vision_encoder.mergers.1.*, ..."),
        (_other_language_width, CheckpointError, r"keys of another shape: .*\(104, 64\)"),
        (
            _more_blocks,
            CheckpointError,
            r"missing keys: model.vision_encoder.tower.encoder.layers.3",
        ),
        (_no_mean, CheckpointError, "does not state image_mean"),
        (_no_image_files, CheckpointError, "no preprocessor_config.json"),
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
    # Before anything large is read or made.
    with (
        mock.patch.object(LacoForConditionalGeneration, "from_pretrained", side_effect=MemoryError),
        pytest.raises(error, match=message),
    ):
        load_checkpoint(checkpoint)


def test_missing_checkpoint_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="laco train"):
        load_checkpoint(tmp_path / "nothing")
