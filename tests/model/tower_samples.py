"""Tiny encoders of every kind with random weights, and what transformers itself makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    PreTrainedConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from laco_deploy.model import LacoConfig

BLOCKS = 3
WIDTH = 32
HEADS = 2
_SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": HEADS,
    "patch_size": 7,
}

MODELS: dict[str, tuple[type[PreTrainedConfig], type[nn.Module], dict[str, Any]]] = {
    "aimv2_vision_model": (Aimv2VisionConfig, Aimv2VisionModel, {"image_size": 56}),
    # 64 // 7 = 9: an odd grid that leaves a pixel over, as 384 // 14 = 27 leaves six.
    "siglip_vision_model": (SiglipVisionConfig, SiglipVisionModel, {"image_size": 64}),
    "internvl_vision": (
        InternVLVisionConfig,
        InternVLVisionModel,
        {"image_size": 56, "attention_bias": True},
    ),
}
KINDS = sorted(MODELS)


def vision_config(kind: str, blocks: int = BLOCKS, **settings: Any) -> PreTrainedConfig:
    """Configuration of a tiny encoder, 8 x 8 or (SigLIP) 9 x 9 patches."""
    config_class, _, own = MODELS[kind]
    return config_class(**{**_SIZES, **own, "num_hidden_layers": blocks, **settings})


def laco_config(kind: str, mergers: list[dict[str, Any]], **settings: Any) -> LacoConfig:
    """A whole model around the tiny encoder; `settings` are of the encoder."""
    return LacoConfig(
        vision_config=vision_config(kind, **settings).to_dict(),
        text_config={
            "model_type": "qwen2",
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "vocab_size": 64,
            "tie_word_embeddings": True,
        },
        mergers=mergers,
        image_token_id=3,
    )


def randomize(model: Any, scale: float = 0.2) -> Any:
    """Draw every weight, also those that a fresh model starts at zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=scale, generator=generator)
    return model.eval()


def published_model(kind: str, blocks: int = BLOCKS, **settings: Any) -> Any:
    """The class of transformers itself, with random weights."""
    return randomize(MODELS[kind][1](vision_config(kind, blocks, **settings)))


def pixels(config: Any, count: int = 2) -> Tensor:
    """[count, 3, S, S]."""
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def published_output(model: Any, images: Tensor) -> Tensor:
    """What a language model reads of transformers' own encoder: [B, N, C]."""
    output = model(images, output_hidden_states=True)
    if isinstance(model, SiglipVisionModel):
        return output.hidden_states[-1]  # before post_layernorm, as LLaVA-OneVision takes it
    first = 1 if isinstance(model, InternVLVisionModel) else 0  # without CLS
    return output.last_hidden_state[:, first:]
