"""InternViT (OpenGVLab, arXiv 2312.14238): CLS token, LayerScale, no norm behind the blocks."""

from __future__ import annotations

from transformers import InternVLVisionConfig, InternVLVisionModel

from laco_deploy.model.towers.base import TowerType
from laco_deploy.model.towers.keys import KeyLayout, KeyRule

_BLOCK = r"encoder\.layers\.(\d+)\."
_LAYER = r"encoder.layer.\1."

INTERN_VISION_MODEL = KeyLayout(
    rules=(
        KeyRule(r"embeddings\.class_embedding", ("embeddings.cls_token",)),
        KeyRule(r"embeddings\.position_embedding", ("embeddings.position_embeddings",)),
        KeyRule(
            r"embeddings\.patch_embedding\.(\w+)", (r"embeddings.patch_embeddings.projection.\1",)
        ),
        KeyRule(
            _BLOCK + r"attn\.qkv\.(\w+)",
            tuple(rf"{_LAYER}attention.{part}_proj.\2" for part in "qkv"),
        ),
        KeyRule(_BLOCK + r"attn\.([qk])_norm\.weight", (_LAYER + r"attention.\2_norm.weight",)),
        KeyRule(_BLOCK + r"attn\.proj\.(\w+)", (_LAYER + r"attention.projection_layer.\2",)),
        KeyRule(_BLOCK + r"norm1\.(\w+)", (_LAYER + r"layernorm_before.\2",)),
        KeyRule(_BLOCK + r"norm2\.(\w+)", (_LAYER + r"layernorm_after.\2",)),
        KeyRule(_BLOCK + r"ls([12])", (_LAYER + r"lambda_\2",)),
        KeyRule(_BLOCK + r"mlp\.(fc[12]\.\w+)", (_LAYER + r"mlp.\2",)),
    ),
)
"""Names in the code beside OpenGVLab/InternViT-* (InternVL, modeling_intern_vit.py)."""

INTERNVIT = TowerType(
    config_class=InternVLVisionConfig,
    weights_class=InternVLVisionModel,
    embed=lambda tower, pixels: tower.embeddings(pixels),
    blocks=lambda tower: tower.encoder.layer,
    run_block=lambda block, tokens: block(tokens),
    final_norm=lambda tower: tower.layernorm,  # identity, unless use_mean_pooling is off
    prefix_tokens=1,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    published_types=("intern_vit_6b",),
    published_settings={
        "qkv_bias": "attention_bias",
        "qk_normalization": "use_qk_norm",
        "dropout": "projection_dropout",
        "initializer_factor": "layer_scale_init_value",
    },
    layouts=(KeyLayout(), INTERN_VISION_MODEL),
    block_names="encoder.layer.",
)

__all__ = ["INTERNVIT"]
