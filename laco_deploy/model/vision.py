"""The compressed vision encoder: a tower with mergers between its blocks (paper section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.mergers import build_merger
from laco_deploy.model.towers import find_tower
from laco_runtimes.errors import ArgumentError


class LacoVisionEncoder(nn.Module):
    """Encode images into visual tokens, fewer after each merger.

    Gradient checkpointing and the kind of attention are the tower's own: both reach its blocks from
    the methods of the whole model.

    Raises:
        ConfigError: no tower of that `model_type` is known.
    """

    def __init__(self, config: LacoConfig) -> None:
        super().__init__()
        self.tower_type = find_tower(config.vision.model_type)
        self.image_size = config.image_size
        self.tower = self.tower_type.build(config.vision)
        mergers: dict[str, nn.Module] = {}
        grid = config.patch_grid
        for spec in config.merger_specs:
            mergers[str(spec.after_block)] = build_merger(spec, config.vision.hidden_size, grid)
            grid = spec.merged_grid(grid)
        self.mergers = nn.ModuleDict(mergers)  # keyed by after_block

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode [B, 3, S, S] normalised pixels into [B, N', C] visual tokens.

        Raises:
            ArgumentError: the pixels are not of the encoder's image size; its positions are learned
                for that one.
        """
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            height, width = pixel_values.shape[-2:]
            raise ArgumentError(
                f"pixel_values are {height}x{width}, the encoder takes "
                f"{self.image_size}x{self.image_size}. Resize the images."
            )
        tower, kind = self.tower, self.tower_type
        blocks = kind.blocks(tower)
        tokens = kind.embed(tower, pixel_values)  # [B, P + N, C]
        for number, block in enumerate(blocks, start=1):
            tokens = kind.run_block(block, tokens)
            # On the raw residual stream, before the next block's own norm.
            if number < len(blocks) and str(number) in self.mergers:
                tokens = self._merge_patches(number, tokens)
        tokens = kind.final_norm(tower)(tokens)
        if kind.prefix_tokens:
            tokens = tokens[:, kind.prefix_tokens :]  # [B, N, C]
        if str(len(blocks)) in self.mergers:  # "LaCo@1": subsequent to the encoder
            tokens = self.mergers[str(len(blocks))](tokens)
        return tokens

    def _merge_patches(self, after_block: int, tokens: Tensor) -> Tensor:
        """Merge [B, P + N, C] into [B, P + N', C]; CLS passes by, as it stands for no patch."""
        merger = self.mergers[str(after_block)]
        prefix = self.tower_type.prefix_tokens
        if not prefix:
            return merger(tokens)
        return torch.cat([tokens[:, :prefix], merger(tokens[:, prefix:])], dim=1)


__all__ = ["LacoVisionEncoder"]
