"""Published weights: every folder that is out there loads, and gives the published numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    Aimv2Config,
    Aimv2Model,
    Aimv2VisionConfig,
    Aimv2VisionModel,
    SiglipConfig,
    SiglipModel,
)

from laco_deploy.model.towers import SiglipTrunk, find_published_tower
from laco_deploy.model.weights import (
    load_language_model,
    load_tower,
    read_language_model,
    read_tower,
)
from laco_runtimes.errors import CheckpointError
from tests.model.published_folders import (
    INTERN_VISION_CONFIG,
    ML_AIM_CONFIG,
    WEIGHTS,
    intern_vision_forward,
    intern_vision_weights,
    language_model,
    ml_aim_forward,
    ml_aim_weights,
    rewrite,
    set_config,
    siglip_folder,
    write_folder,
)
from tests.model.tower_samples import (
    BLOCKS,
    HEADS,
    KINDS,
    WIDTH,
    pixels,
    published_model,
    published_output,
    randomize,
    vision_config,
)


def run(tower: Any, images: Tensor) -> Tensor:
    """Patch tokens of a loaded tower: [B, N, C]."""
    kind = find_published_tower(tower.config.model_type)
    with torch.no_grad():
        tokens = kind.embed(tower, images)
        for block in kind.blocks(tower):
            tokens = kind.run_block(block, tokens)
        return kind.final_norm(tower)(tokens)[:, kind.prefix_tokens :]


@pytest.mark.parametrize("shard_size", ["50GB", "30KB"])
@pytest.mark.parametrize("kind", KINDS)
def test_folder_of_transformers_gives_its_output_bit_for_bit(
    kind: str, shard_size: str, tmp_path: Path
) -> None:
    original = published_model(kind)
    original.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / WEIGHTS).exists() == (shard_size == "50GB")
    tower = load_tower(tmp_path)
    assert not tower.training
    images = pixels(original.config)
    assert torch.equal(run(tower, images), published_output(original, images))
    built = find_published_tower(kind).build(vision_config(kind))
    built.load_state_dict(tower.state_dict())  # strict: the very names that the model has


def test_siglip_folder_with_a_text_tower_gives_the_first_blocks(tmp_path: Path) -> None:
    original = siglip_folder(tmp_path, blocks=BLOCKS + 1).vision_model
    tower = load_tower(tmp_path, blocks=BLOCKS)
    assert isinstance(tower, SiglipTrunk)
    assert len(tower.encoder.layers) == tower.config.num_hidden_layers == BLOCKS
    del original.encoder.layers[BLOCKS:]  # as LLaVA-OneVision does with the 27th
    images = pixels(original.config)
    assert torch.equal(run(tower, images), published_output(original, images))


def test_aimv2_folder_with_a_text_tower_and_a_head_loads(tmp_path: Path) -> None:
    image = vision_config("aimv2_vision_model", use_head=True).to_dict()
    text = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    text |= {"vocab_size": 50, "intermediate_size": 48, "eos_token_id": 2}
    original = randomize(Aimv2Model(Aimv2Config(text_config=text, vision_config=image)))
    original.save_pretrained(tmp_path)
    tower = load_tower(tmp_path)
    images = pixels(original.vision_model.config)
    assert torch.equal(run(tower, images), published_output(original.vision_model, images))


@torch.no_grad()
def test_internvit_under_the_names_of_its_own_code_computes_the_same(tmp_path: Path) -> None:
    weights = intern_vision_weights()
    write_folder(tmp_path, weights, INTERN_VISION_CONFIG)
    tower: Any = load_tower(tmp_path)
    assert not hasattr(tower.config, "auto_map")
    images = pixels(tower.config)
    expected = intern_vision_forward(weights, images)
    torch.testing.assert_close(run(tower, images), expected, rtol=0, atol=1e-5)
    # Queries, keys and values were one tensor: apart now, or safetensors refuses to save them.
    save_file(tower.state_dict(), tmp_path / "again.safetensors")


def test_aimv2_under_the_names_of_its_own_code_computes_the_same(tmp_path: Path) -> None:
    weights = ml_aim_weights()
    write_folder(tmp_path, weights, ML_AIM_CONFIG)
    tower = load_tower(tmp_path)
    images = pixels(tower.config)
    expected = ml_aim_forward(weights, images)
    torch.testing.assert_close(run(tower, images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_in_the_precision_asked_for(kind: str, tmp_path: Path) -> None:
    published_model(kind).to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        tower = load_tower(tmp_path, dtype=dtype)
        assert {weight.dtype for weight in tower.parameters()} == {dtype}


def test_a_hub_id_is_read_from_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    root = tmp_path / "models--apple--aimv2-tiny"
    published_model("aimv2_vision_model").save_pretrained(root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checked = read_tower("apple/aimv2-tiny")
    assert checked.tensors["rms_norm.weight"].shape == (WIDTH,)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 2, 3]])).logits


@pytest.mark.parametrize("tied", [True, False])
def test_language_model_gives_its_logits_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    original = language_model(tie_word_embeddings=tied)
    original.save_pretrained(tmp_path)
    model = load_language_model(tmp_path)
    assert torch.equal(logits(model), logits(original))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_tied_head_may_be_stored_twice_but_not_differ(tmp_path: Path) -> None:
    original = language_model()
    original.save_pretrained(tmp_path)
    table = original.model.embed_tokens.weight.detach()
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": table.clone()}))
    assert torch.equal(logits(load_language_model(tmp_path)), logits(original))
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": table + 1}))
    with pytest.raises(CheckpointError, match="holds two different ones"):
        load_language_model(tmp_path)


def test_flat_rope_base_of_published_qwen_is_kept(tmp_path: Path) -> None:
    # Qwen/Qwen2.5-0.5B has "rope_theta": 1000000.0 beside the other settings; the default is 10000.
    language_model().save_pretrained(tmp_path)
    set_config(tmp_path, rope_parameters=None, rope_theta=1e6, torch_dtype="bfloat16")
    config: Any = read_language_model(tmp_path).config
    assert config.rope_parameters["rope_theta"] == 1e6


# At full size, under the names of the hub. Small weights keep 24 blocks in a range where fp32 means
# something; bfloat16 on disk keeps the folders small.


def _full_aimv2(folder: Path) -> tuple[Any, int, Callable[[Tensor], Tensor]]:
    """As apple/aimv2-large-patch14-448."""
    model = randomize(Aimv2VisionModel(Aimv2VisionConfig(image_size=448, use_head=False)), 0.02)
    model.save_pretrained(folder)
    return load_tower(folder), 309_984_256, lambda images: published_output(model, images)


def _full_siglip(folder: Path) -> tuple[Any, int, Callable[[Tensor], Tensor]]:
    """As google/siglip-so400m-patch14-384, with its text tower."""
    so400m = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
    }
    config = SiglipConfig(
        text_config={**so400m, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**so400m, "image_size": 384, "patch_size": 14},
    )
    whole = randomize(SiglipModel(config), 0.02).to(torch.bfloat16)
    whole.save_pretrained(folder)
    model = whole.vision_model.float()
    del whole, model.encoder.layers[26:]
    tower = load_tower(folder, blocks=26)
    return tower, 397_745_440, lambda images: published_output(model, images)


def _full_internvit(folder: Path) -> tuple[Any, int, Callable[[Tensor], Tensor]]:
    """As OpenGVLab/InternViT-300M-448px, under the names of the code beside it."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    settings = {**sizes, "image_size": 448, "patch_size": 14, "num_hidden_layers": 24}
    weights = intern_vision_weights(24, width=1024, inner=4096, patch=14, side=32, scale=0.02)
    weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
    write_folder(folder, weights, {**INTERN_VISION_CONFIG, **settings})
    exact = {name: tensor.float() for name, tensor in weights.items()}
    tower = load_tower(folder)
    return tower, 304_012_288, lambda images: intern_vision_forward(exact, images, heads=16)


@pytest.mark.full
@pytest.mark.parametrize("folder_of", [_full_aimv2, _full_siglip, _full_internvit])
def test_published_folder_of_full_size_loads(
    folder_of: Callable[[Path], tuple[Any, int, Callable[[Tensor], Tensor]]], tmp_path: Path
) -> None:
    tower, count, original = folder_of(tmp_path)
    assert sum(weight.numel() for weight in tower.parameters()) == count
    images = pixels(tower.config, count=1)
    with torch.no_grad():
        found, expected = run(tower, images), original(images)
    # InternViT's own code is written out here, so that only the order of additions may differ.
    exact = folder_of is not _full_internvit
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if exact else 1e-4)
