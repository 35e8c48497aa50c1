"""Presets know the published shapes offline: every parameter count is the published one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from laco_deploy.model import LacoConfig
from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS, find_preset
from laco_deploy.model.towers import find_tower
from laco_runtimes.errors import ConfigError

PUBLISHED_PARAMETERS = {
    "aimv2-large-224": 309_197_824,
    "aimv2-large-336": 309_525_504,
    "aimv2-large-448": 309_984_256,
    "siglip-so400m-384": 397_745_440,
    "internvit-300m-448": 304_012_288,
    "qwen2.5-0.5b": 494_032_768,
}
"""From the specification; the presets state the same and must be built to it."""
LISTED_BILLIONS = {"aimv2-huge-448": 0.7, "aimv2-1b-448": 1.2}
CLIP_MEAN, IMAGENET_MEAN = (0.48145466, 0.4578275, 0.40821073), (0.485, 0.456, 0.406)


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", VISION_PRESETS)
def test_encoder_has_the_published_number_of_parameters(name: str) -> None:
    preset = VISION_PRESETS[name]
    config = preset.config()
    with torch.device("meta"):
        built = parameters(find_tower(config.model_type).build(config))
    assert built == preset.parameters
    if name in PUBLISHED_PARAMETERS:
        assert built == PUBLISHED_PARAMETERS[name]
    else:
        assert round(built / 1e9, 1) == LISTED_BILLIONS[name]


def test_all_27_blocks_of_siglip_and_its_norm_have_the_published_number_of_parameters() -> None:
    config = VISION_PRESETS["siglip-so400m-384"].config(blocks=27)
    with torch.device("meta"):
        assert parameters(SiglipVisionModel(config)) == 412_987_248


def test_language_model_has_the_published_number_of_parameters() -> None:
    preset = LANGUAGE_PRESETS["qwen2.5-0.5b"]
    with torch.device("meta"):
        model = Qwen2ForCausalLM(preset.config())
    assert parameters(model) == preset.parameters == PUBLISHED_PARAMETERS["qwen2.5-0.5b"]
    assert parameters(model.model.embed_tokens) == 151_936 * 896


@pytest.mark.parametrize(
    ("name", "patches", "tokens", "mean", "std"),
    [
        ("aimv2-large-224", 16, 64, CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711)),
        ("aimv2-large-336", 24, 144, CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711)),
        ("aimv2-large-448", 32, 256, CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711)),
        ("siglip-so400m-384", 27, 196, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("internvit-300m-448", 32, 256, IMAGENET_MEAN, (0.229, 0.224, 0.225)),
    ],
)
def test_encoder_gives_the_published_grid_tokens_and_preprocessing(
    name: str,
    patches: int,
    tokens: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> None:
    preset = VISION_PRESETS[name]
    config = LacoConfig(vision_config=preset.config().to_dict())
    assert config.patch_grid == (patches, patches)
    assert config.tokens_per_tile == tokens
    assert [spec.after_block for spec in config.merger_specs] == [6]  # a quarter of 24 and of 26
    assert (preset.mean, preset.std) == (mean, std)


def test_special_tokens_are_inside_the_embedding_and_end_the_answer() -> None:
    preset = LANGUAGE_PRESETS["qwen2.5-0.5b"]
    config = preset.config()
    assert max(preset.special_tokens.values()) < config.vocab_size
    assert preset.special_tokens["<|im_end|>"] == config.eos_token_id


def test_unknown_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'aimv2-large-448'\?") as caught:
        find_preset("vision encoder", "AIMv2-Large-44", VISION_PRESETS)
    for name in VISION_PRESETS:
        assert name in str(caught.value)


@pytest.mark.parametrize("blocks", [0, 28, -1])
def test_blocks_out_of_range_are_refused(blocks: int) -> None:
    with pytest.raises(ConfigError, match="Choose 1 to 27"):
        VISION_PRESETS["siglip-so400m-384"].config(blocks=blocks)
