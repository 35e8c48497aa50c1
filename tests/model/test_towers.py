"""The walk over each encoder's blocks: numbers of transformers, mergers where they belong."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Aimv2VisionConfig, InternVLVisionConfig, SiglipVisionConfig
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.model.towers import TOWERS, find_published_tower, find_tower
from laco_deploy.model.vision import LacoVisionEncoder
from laco_runtimes.errors import ArgumentError, ConfigError
from tests.model.tower_samples import (
    BLOCKS,
    KINDS,
    WIDTH,
    laco_config,
    pixels,
    published_model,
    published_output,
    randomize,
)

every_tower = pytest.mark.parametrize("kind", KINDS)


def encoder(kind: str, mergers: list[dict[str, Any]]) -> LacoVisionEncoder:
    """An encoder with a random tower, and mergers as a fresh model has them."""
    torch.manual_seed(0)
    model = LacoForConditionalGeneration(laco_config(kind, mergers)).model.vision_encoder
    randomize(model.tower)
    return model.eval()


def test_every_tower_of_the_table_is_tested() -> None:
    assert sorted(TOWERS) == KINDS


@every_tower
def test_without_mergers_the_encoder_is_transformers_own_bit_for_bit(kind: str) -> None:
    original = published_model(kind)
    ours = encoder(kind, [])
    # SigLIP's norm behind the blocks and its head are left out; nothing else may be.
    misfits = ours.tower.load_state_dict(original.state_dict(), strict=False)
    assert misfits.missing_keys == []
    assert {name.split(".")[0] for name in misfits.unexpected_keys} <= {"head", "post_layernorm"}
    images = pixels(original.config)
    with torch.no_grad():
        assert torch.equal(ours(images), published_output(original, images))


@torch.no_grad()
def test_siglip_without_its_last_block_is_what_llava_onevision_reads() -> None:
    original = published_model("siglip_vision_model", blocks=BLOCKS + 1)
    ours = encoder("siglip_vision_model", [])
    ours.tower.load_state_dict(original.state_dict(), strict=False)
    del original.encoder.layers[-1:]
    images = pixels(original.config)
    assert torch.equal(ours(images), published_output(original, images))


def reference(ours: LacoVisionEncoder, images: Tensor, after_block: int) -> Tensor:
    """Run the blocks by hand with average pooling of the patches behind block `after_block`."""
    tower: Any = ours.tower
    kind = ours.tower_type
    tokens = kind.embed(tower, images)
    blocks = list(kind.blocks(tower))

    def pool(patches: Tensor) -> Tensor:
        side = round(patches.shape[1] ** 0.5)
        grid = patches.transpose(1, 2).reshape(len(images), -1, side, side)
        pooled = functional.avg_pool2d(grid, 2, ceil_mode=True, count_include_pad=False)
        return pooled.flatten(2).transpose(1, 2)

    for number, block in enumerate(blocks, start=1):
        tokens = kind.run_block(block, tokens)
        if number == after_block < len(blocks):
            cls, patches = tokens[:, : kind.prefix_tokens], tokens[:, kind.prefix_tokens :]
            tokens = torch.cat([cls, pool(patches)], dim=1)
    tokens = kind.final_norm(tower)(tokens)[:, kind.prefix_tokens :]
    return pool(tokens) if after_block == len(blocks) else tokens


@every_tower
@pytest.mark.parametrize("after_block", range(1, BLOCKS + 1))
def test_fresh_merger_pools_the_patches_behind_block_k(kind: str, after_block: int) -> None:
    # Counted from 1: blocks[k - 1] is the last that sees all patches. On the odd grid of SigLIP
    # replicating the last row and column is the mean of the real patches alone.
    ours = encoder(kind, [{"after_block": after_block}])
    images = pixels(ours.tower.config)
    with torch.no_grad():
        expected = reference(ours, images, after_block)
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-5)


@every_tower
def test_mergers_see_patches_only_and_cls_goes_on_unchanged(kind: str) -> None:
    ours = encoder(kind, [{"after_block": 1}, {"after_block": 2}, {"after_block": BLOCKS}])
    lengths: list[int] = []
    for merger in ours.mergers.values():
        merger.register_forward_hook(lambda _m, args, _out: lengths.append(args[0].shape[1]))
    seen: dict[str, Tensor] = {}
    blocks = ours.tower_type.blocks(ours.tower)
    blocks[0].register_forward_hook(lambda _m, _args, out: seen.update(out=out))
    blocks[1].register_forward_hook(lambda _m, args, _out: seen.update(into=args[0]))
    images = pixels(ours.tower.config)
    with torch.no_grad():
        tokens = ours(images)
    sides = [9, 5, 3, 2] if kind == "siglip_vision_model" else [8, 4, 2, 1]
    assert lengths == [side * side for side in sides[:-1]]
    assert tokens.shape == (2, sides[-1] ** 2, WIDTH)
    prefix = ours.tower_type.prefix_tokens
    assert prefix == (kind == "internvl_vision")
    assert seen["into"].shape[1] == prefix + sides[1] ** 2
    assert torch.equal(seen["into"][:, :prefix], seen["out"][:, :prefix])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("aimv2_vision_model", {}),
        ("internvl_vision", {"use_mean_pooling": False}),  # published ones have no norm there
    ],
)
def test_merger_after_the_last_block_stands_behind_the_final_norm(
    kind: str, settings: dict[str, Any]
) -> None:
    config = laco_config(kind, [{"after_block": BLOCKS}], **settings)
    ours = LacoVisionEncoder(config)
    order: list[str] = []
    norm = ours.tower_type.final_norm(ours.tower)
    assert not isinstance(norm, nn.Identity)
    norm.register_forward_hook(lambda *_: order.append("norm"))
    ours.mergers[str(BLOCKS)].register_forward_hook(lambda *_: order.append("merger"))
    ours(pixels(config.vision))
    assert order == ["norm", "merger"]


@every_tower
def test_whole_model_runs_sdpa_unless_told_otherwise(
    kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LacoForConditionalGeneration(laco_config(kind, [{"after_block": 1}]))
    assert model.model.vision_encoder.tower.config._attn_implementation == "sdpa"
    calls = Counter[str]()
    sdpa = functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls["sdpa"] += 1
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    images = pixels(model.config.vision)
    with torch.no_grad():
        expected = model.eval().get_image_features(images)
    assert calls["sdpa"] == BLOCKS
    model.save_pretrained(tmp_path)
    eager = LacoForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.model.vision_encoder.tower.config._attn_implementation == "eager"
    with torch.no_grad():
        torch.testing.assert_close(eager.get_image_features(images), expected, rtol=0, atol=1e-5)
    assert calls["sdpa"] == BLOCKS


@every_tower
def test_gradient_checkpointing_of_the_whole_model_reaches_every_block(kind: str) -> None:
    model = randomize(LacoForConditionalGeneration(laco_config(kind, [{"after_block": 1}])))
    images = pixels(model.config.vision)
    runs = Counter[int]()
    for index, block in enumerate(
        model.model.vision_encoder.tower_type.blocks(model.model.vision_encoder.tower)
    ):
        first = next(module for name, module in block.named_modules() if name.endswith("q_proj"))
        first.register_forward_hook(lambda *_, index=index: runs.update([index]))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        model.get_image_features(images).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.train()
    plain = gradients()
    assert runs == {index: 1 for index in range(BLOCKS)}
    model.activation_checkpointing_enable()
    runs.clear()
    saved = gradients()
    assert runs == {index: 2 for index in range(BLOCKS)}  # once more on the way back
    assert plain.keys() == saved.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, msg=name)


@every_tower
def test_bfloat16_encoder_takes_float32_pixels(kind: str) -> None:
    ours = encoder(kind, [{"after_block": 1}])
    images = pixels(ours.tower.config)
    with torch.no_grad():
        expected = ours(images)
        found = ours.to(torch.bfloat16)(images)
    assert found.dtype == torch.bfloat16
    closeness = functional.cosine_similarity(found.float(), expected, dim=-1)
    assert closeness.min() > 0.99


@every_tower
def test_pixels_of_another_size_are_refused(kind: str) -> None:
    ours = encoder(kind, [])
    with pytest.raises(ArgumentError, match=r"pixel_values are 70x56, the encoder takes"):
        ours(torch.zeros(1, 3, 70, 56))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("aimv2_vision_modle", "aimv2_vision_model"), ("clip_vision_model", "siglip_vision_model")],
)
def test_unknown_tower_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {right!r}"):
        find_tower(wrong)
    with pytest.raises(ConfigError, match="unknown vision encoder 'resnet'"):
        find_published_tower("resnet")


def test_each_tower_has_its_published_mean_and_std() -> None:
    found = {kind: (list(tower.mean), list(tower.std)) for kind, tower in TOWERS.items()}
    assert found == {
        "aimv2_vision_model": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        "siglip_vision_model": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),  # all 0.5
        "internvl_vision": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    }


SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
SIGLIP_POST_NORM = 2 * 1152


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (Aimv2VisionConfig(image_size=224), 309_197_824),
        (Aimv2VisionConfig(image_size=336), 309_525_504),
        (Aimv2VisionConfig(image_size=448), 309_984_256),
        # shared/method.md counts the 27-block trunk with its norm, which no tower here has
        (SiglipVisionConfig(**SO400M, num_hidden_layers=27), 412_987_248 - SIGLIP_POST_NORM),
        (SiglipVisionConfig(**SO400M, num_hidden_layers=26), 397_745_440),
        (InternVLVisionConfig(attention_bias=True), 304_012_288),
    ],
    ids=["aimv2-224", "aimv2-336", "aimv2-448", "siglip-27", "siglip-26", "internvit"],
)
def test_parameter_counts_at_full_size_are_the_published_ones(config: Any, count: int) -> None:
    with torch.device("meta"):
        tower = find_tower(config.model_type).build(config)
    assert sum(weight.numel() for weight in tower.parameters()) == count
