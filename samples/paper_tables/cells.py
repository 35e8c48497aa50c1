"""The cells of the tables: which encoder, which merger, after which block, and their theory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from laco_deploy.model import LacoConfig
from laco_deploy.model.cost import formula_operations
from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS

ENCODERS: Mapping[str, str] = {
    "aimv2": "aimv2-large-448",
    "siglip": "siglip-so400m-384",
    "internvit": "internvit-300m-448",
}
"""The paper's names and our presets."""

LANGUAGE = "qwen2.5-0.5b"

PARTS: Mapping[str, int] = {"1/12": 12, "1/6": 6, "1/4": 4, "1/2": 2, "1": 1}
"""Where LaCo is put: k = floor(L / 12) and so on; SigLIP's 26 blocks give 2, 4, 6, 13, 26."""

QUARTER = PARTS["1/4"]
PEERS: Mapping[str, str] = {
    "Pixel-Shuffle": "pixel_shuffle",
    "LDPv2": "ldpv2",
    "TokenPacker": "token_packer",
}
"""The mergers that Table 1 compares, and our names for them."""

TINY_BLOCKS, TINY_WIDTH, TINY_GRID = 12, 64, 8
"""`--tiny`: every fraction of 12 blocks is a block of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measured row of a table."""

    encoder: str
    variant: str
    """As in the paper: LaCo@1/4, LDPv2@1/4."""
    kind: str
    after_block: int
    """k, counted from 1."""
    config: LacoConfig

    @property
    def name(self) -> str:
        """Also a file name."""
        return f"{self.encoder}-{self.kind}-{self.after_block}"

    @property
    def depth(self) -> float:
        """k / L."""
        return self.after_block / self.config.vision.num_hidden_layers

    @property
    def gflop(self) -> float:
        """Of a tile from pixels to visual tokens, which is what VT times."""
        operations = formula_operations(self.config)
        return (operations.encoder + operations.projector) / 1e9


def vision_config(encoder: str, tiny: bool) -> PreTrainedConfig:
    """A full-size tower, or the same kind with 12 narrow blocks and few patches."""
    preset = VISION_PRESETS[ENCODERS[encoder]]
    if not tiny:
        return preset.config()
    patch = preset.settings["patch_size"]
    odd = preset.settings["image_size"] // patch % 2  # SigLIP's 27 x 27 stays odd
    return preset.config_class(
        **{
            **preset.settings,
            "num_hidden_layers": TINY_BLOCKS,
            "hidden_size": TINY_WIDTH,
            "intermediate_size": 2 * TINY_WIDTH,
            "num_attention_heads": 2,
            "image_size": (TINY_GRID - odd) * patch,
        }
    )


def text_config(tiny: bool) -> dict[str, Any]:
    """Qwen2.5-0.5B, or two narrow layers of its kind."""
    settings = LANGUAGE_PRESETS[LANGUAGE].config().to_dict()
    if tiny:
        settings |= {
            "hidden_size": TINY_WIDTH,
            "intermediate_size": 2 * TINY_WIDTH,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_hidden_layers": 2,
            "layer_types": None,
            "vocab_size": 512,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    return settings


def cells_of(encoder: str, tiny: bool = False) -> list[Cell]:
    """LaCo at every part, then the compared mergers at 1/4."""
    vision, text = vision_config(encoder, tiny), text_config(tiny)
    blocks = vision.num_hidden_layers
    wanted = [(f"LaCo@{name}", "laco", blocks // part) for name, part in PARTS.items()]
    wanted += [(f"{name}@1/4", kind, blocks // QUARTER) for name, kind in PEERS.items()]
    return [
        Cell(
            encoder=encoder,
            variant=variant,
            kind=kind,
            after_block=k,
            config=LacoConfig(
                vision_config=vision.to_dict(),
                text_config=text,
                mergers=[{"kind": kind, "after_block": k}],
            ),
        )
        for variant, kind, k in wanted
    ]


def theory(cells: Sequence[Cell], reference: Cell) -> dict[str, float]:
    """Operations of each cell over those of the reference, by name of the cell."""
    return {cell.name: cell.gflop / reference.gflop for cell in cells}


__all__ = [
    "ENCODERS",
    "LANGUAGE",
    "PARTS",
    "PEERS",
    "Cell",
    "cells_of",
    "text_config",
    "theory",
    "vision_config",
]
