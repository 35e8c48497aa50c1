"""Put a merger into a trained model, everything else unchanged."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import cast

import torch
from torch import nn

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.mergers.base import Merger
from laco_deploy.model.mergers.init import OwnInit, TruncNormalLinear, ZeroInitLinear
from laco_deploy.model.modeling import LacoForConditionalGeneration

PUBLISHED_WIDTH = 1024
"""C of AIMv2-Large, for which starting values of 0.02 are meant."""
PUBLISHED_STD = 0.02


def with_mergers(config: LacoConfig, mergers: tuple[MergerSpec, ...]) -> LacoConfig:
    """The same shapes with these mergers."""
    return LacoConfig(
        vision_config=config.vision.to_dict(),
        text_config=config.text.to_dict(),
        mergers=[asdict(spec) for spec in mergers],
        image_token_id=config.image_token_id,
    )


def insert(
    base: LacoForConditionalGeneration, mergers: tuple[MergerSpec, ...], seed: int
) -> LacoForConditionalGeneration:
    """A copy of a model without mergers, with fresh ones drawn from `seed`."""
    torch.manual_seed(seed)
    model = LacoForConditionalGeneration(with_mergers(cast(LacoConfig, base.config), mergers))
    for merger in model.model.vision_encoder.mergers.values():
        _start(cast(Merger, merger), model.config.vision.hidden_size)
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    fresh = [name for name in missing if ".mergers." not in name]
    if fresh or unexpected:
        raise RuntimeError(f"weights do not fit: {[*fresh, *unexpected][:5]}")  # our own mistake
    return model


@torch.no_grad()
def _start(merger: Merger, width: int) -> None:
    """Start a merger as loud in a narrow encoder as its published values make it in a wide one.

    The output of a linear layer grows with the root of its width, so 0.02 at width 1,024 answers
    to 0.08 at 64; left at 0.02, four layers in a row would pass next to nothing on. Convolutions
    and attention, which start by their own width, stay as they are.

    Only LaCo's own last layer starts at zero. `pixel_shuffle` with the shortcut is the same module
    but for that: it starts as it was published, and the shortcut is all it gains.
    """
    std = PUBLISHED_STD * math.sqrt(PUBLISHED_WIDTH / width)
    for module in merger.modules():
        if not isinstance(module, nn.Linear):
            continue
        zero = isinstance(module, ZeroInitLinear) and merger.spec.kind == "laco"
        own = isinstance(module, OwnInit) and not isinstance(
            module, TruncNormalLinear | ZeroInitLinear
        )
        if not zero and not own:
            nn.init.normal_(module.weight, std=std)


__all__ = ["PUBLISHED_STD", "PUBLISHED_WIDTH", "insert", "with_mergers"]
