"""SigLIP (Google, arXiv 2303.15343) as LLaVA-OneVision uses it: raw output of an inner block."""

from __future__ import annotations

from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from laco_deploy.model.towers.base import TowerType
from laco_deploy.model.towers.keys import KeyLayout


class SiglipTrunk(SiglipVisionModel):
    """Patch embedding and blocks; neither the norm behind them nor the pooling head.

    LLaVA-OneVision deletes the last of the 27 blocks and reads `hidden_states[-1]`
    (LLaVA-NeXT, llava/model/multimodal_encoder/siglip_encoder.py): `num_hidden_layers` is 26 then.
    """

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__(config)
        self.add_module("post_layernorm", nn.Identity())


_UNUSED = r"(head|post_layernorm)\..*"

SIGLIP = TowerType(
    config_class=SiglipVisionConfig,
    weights_class=SiglipTrunk,
    embed=lambda tower, pixels: tower.embeddings(pixels),
    blocks=lambda tower: tower.encoder.layers,
    run_block=lambda block, tokens: block(tokens, None),
    final_norm=lambda tower: tower.post_layernorm,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    fixed={"vision_use_head": False},
    published_types=("siglip",),
    layouts=(
        KeyLayout(
            prefix="vision_model.",  # google/siglip-*: a text tower stands beside it
            leftover=(rf"vision_model\.{_UNUSED}", r"text_model\..*", "logit_(scale|bias)"),
        ),
        KeyLayout(leftover=(_UNUSED,)),
    ),
    block_names="encoder.layers.",
)

__all__ = ["SIGLIP", "SiglipTrunk"]
