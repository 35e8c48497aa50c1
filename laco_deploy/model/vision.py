"""The compressed vision encoder: a tower with mergers between its blocks (paper section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.mergers import build_merger
from laco_deploy.model.towers import TOWERS
from laco_runtimes.errors import ConfigError


class LacoVisionEncoder(nn.Module):
    """Encode images into visual tokens, fewer after each merger.

    Raises:
        ConfigError: no tower of that `model_type` is known.
    """

    def __init__(self, config: LacoConfig) -> None:
        super().__init__()
        kind = config.vision.model_type
        if kind not in TOWERS:
            raise ConfigError(
                f"unknown vision encoder {kind!r}. Known: {', '.join(sorted(TOWERS))}."
            )
        self.tower_type = TOWERS[kind]
        self.tower = self.tower_type.build(config.vision)
        mergers: dict[str, nn.Module] = {}
        height, width = config.patch_grid
        for spec in config.merger_specs:
            mergers[str(spec.after_block)] = build_merger(
                spec, config.vision.hidden_size, (height, width)
            )
            height, width = height // spec.ratio, width // spec.ratio
        self.mergers = nn.ModuleDict(mergers)  # keyed by after_block
        self.gradient_checkpointing = False

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode [B, 3, S, S] normalised pixels into [B, N', C] visual tokens."""
        tokens = self.tower_type.embed(self.tower, pixel_values)  # [B, N, C]
        blocks = self.tower_type.blocks(self.tower)
        for number, block in enumerate(blocks, start=1):
            tokens = block(tokens)
            # On the raw residual stream, before the next block's own norm.
            if number < len(blocks) and str(number) in self.mergers:
                tokens = self.mergers[str(number)](tokens)
        tokens = self.tower_type.final_norm(self.tower)(tokens)
        if str(len(blocks)) in self.mergers:  # "LaCo@1": subsequent to the encoder
            tokens = self.mergers[str(len(blocks))](tokens)
        return tokens


__all__ = ["LacoVisionEncoder"]
