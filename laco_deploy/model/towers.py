"""Vision encoders, as a table: how to build one and where its blocks are.

The modules are those of transformers, under their own names, so that published weights load; what
is ours is only the walk over the blocks, with a merger between two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Aimv2VisionConfig, Aimv2VisionModel


@dataclass(frozen=True, slots=True)
class TowerType:
    """How the walk over an encoder finds its parts.

    Each callable takes the transformers module that `build` made.
    """

    build: Callable[[Any], nn.Module]
    embed: Callable[[Any, Tensor], Tensor]
    """[B, 3, S, S] -> [B, N, C], positions added."""
    blocks: Callable[[Any], nn.ModuleList]
    final_norm: Callable[[Any], nn.Module]


def _build_aimv2(config: Aimv2VisionConfig) -> nn.Module:
    # The pooling head serves image classification; a language model reads the patch tokens.
    config.use_head = False
    return Aimv2VisionModel(config)


TOWERS: dict[str, TowerType] = {
    "aimv2_vision_model": TowerType(
        build=_build_aimv2,
        embed=lambda tower, pixels: tower.embeddings(pixels),
        blocks=lambda tower: tower.encoder.layers,
        final_norm=lambda tower: tower.rms_norm,
    ),
}
"""Encoders by the `model_type` of their transformers configuration."""

__all__ = ["TOWERS", "TowerType"]
