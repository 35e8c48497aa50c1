"""AIMv2 (Apple, arXiv 2411.14402): patches of 14 pixels, RMSNorm, SwiGLU, no CLS token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Aimv2VisionConfig, Aimv2VisionModel

from laco_deploy.model.towers.base import TowerType
from laco_deploy.model.towers.keys import KeyLayout, KeyRule

_BLOCK = r"trunk\.blocks\.(\d+)\."
_LAYER = r"encoder.layers.\1."

ML_AIM = KeyLayout(
    rules=(
        KeyRule(r"preprocessor\.patchifier\.proj\.(\w+)", (r"embeddings.patch_embed.\1",)),
        KeyRule(r"preprocessor\.patchifier\.norm\.weight", ("embeddings.rms_norm.weight",)),
        KeyRule(
            r"preprocessor\.pos_embed", ("embeddings.position_embedding.weight",), squeeze=True
        ),
        KeyRule(
            _BLOCK + r"attn\.qkv\.(\w+)",
            tuple(rf"{_LAYER}attention.{part}_proj.\2" for part in "qkv"),
        ),
        KeyRule(_BLOCK + r"attn\.proj\.(\w+)", (_LAYER + r"attention.out_proj.\2",)),
        KeyRule(_BLOCK + r"mlp\.fc1\.(\w+)", (_LAYER + r"ffn.gate_proj.\2",)),
        KeyRule(_BLOCK + r"mlp\.fc2\.(\w+)", (_LAYER + r"ffn.down_proj.\2",)),
        KeyRule(_BLOCK + r"mlp\.fc3\.(\w+)", (_LAYER + r"ffn.up_proj.\2",)),
        KeyRule(_BLOCK + r"norm_([12])\.weight", (_LAYER + r"rms_norm\2.weight",)),
        KeyRule(r"trunk\.post_trunk_norm\.weight", ("rms_norm.weight",)),
    ),
)
"""Names in Apple's own code, and in the folders on the hub before transformers had the model."""


def _embed(tower: Any, pixels: Tensor) -> Tensor:
    embeddings = tower.embeddings
    # Unlike the other two, this convolution does not take pixels of another precision.
    return embeddings(pixels.to(embeddings.patch_embed.weight.dtype))


AIMV2 = TowerType(
    config_class=Aimv2VisionConfig,
    weights_class=Aimv2VisionModel,
    embed=_embed,
    blocks=lambda tower: tower.encoder.layers,
    run_block=lambda block, tokens: block(tokens),
    final_norm=lambda tower: tower.rms_norm,
    # CLIP's, as beside the weights (preprocessor_config.json); Apple's own code takes ImageNet's.
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    # The pooling head serves classification; a language model reads the tokens of the patches.
    fixed={"use_head": False},
    published_types=("aimv2",),
    published_settings={"use_bias": "mlp_bias"},
    layouts=(
        KeyLayout(leftover=(r"head\..*",)),
        KeyLayout(
            prefix="vision_model.",  # the model with a text tower, aimv2-large-patch14-224-lit
            leftover=(
                r"vision_model\.head\..*",
                r"text_model\..*",
                r"(visual|text)_projection\..*",
                "logit_scale",
            ),
        ),
        ML_AIM,
    ),
    block_names="encoder.layers.",
)

__all__ = ["AIMV2"]
