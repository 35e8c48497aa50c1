"""Operations of a model by formula and by counting, and its parameters part by part.

What counts as an operation, and the formulas themselves, are in `laco_deploy.operations`.

Symbols: N tokens, N' merged tokens, C encoder width, D language model width, F width inside the
feed-forward network, r merge ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

from laco_deploy import operations
from laco_deploy.model.config import LacoConfig, VisionConfig, square_side
from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.model.towers import find_tower
from laco_deploy.operations import Block, Decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Operations for one tile, and for the language model to take its visual tokens in."""

    embedding: int
    """Patches to tokens."""
    blocks: int
    mergers: int
    projector: int
    prefill: int
    """All layers of the language model over N' tokens, without its head."""

    @property
    def encoder(self) -> int:
        """Pixels to visual tokens: the E(k) that the paper's times can be held against."""
        return self.embedding + self.blocks + self.mergers


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How many weights each part has; one that two parts share counts once."""

    tower: int
    mergers: int
    projector: int
    language_model: int
    """With its head, where that is a matrix of its own."""
    image_newline: int

    @property
    def total(self) -> int:
        """Of the whole model."""
        return self.tower + self.mergers + self.projector + self.language_model + self.image_newline


def block_operations(vision: VisionConfig, tokens: int) -> int:
    """One block: 2N (4 C^2 + m C F) for its matrices and 4 N^2 C for attention."""
    block = Block(vision.model_type, vision.hidden_size, vision.intermediate_size)
    return block.operations(tokens)


def merger_operations(spec: MergerSpec, width: int, grid: tuple[int, int]) -> int:
    """A merger on a grid (H, W). The shortcut is free: it has no product.

    Raises:
        ConfigError: nothing is left of the grid.
    """
    height, columns = spec.merged_grid(grid)
    return operations.merger_operations(spec.kind, width, spec.ratio, height * columns)


def prefill_operations(text: Qwen2Config, tokens: int) -> int:
    """All layers of the language model over so many tokens, without its head."""
    width, heads = text.hidden_size, text.num_attention_heads
    decoder = Decoder(
        model_type=text.model_type,
        layers=text.num_hidden_layers,
        width=width,
        inner=text.intermediate_size,
        heads=heads,
        kv_heads=text.num_key_value_heads or heads,
        head_dim=getattr(text, "head_dim", None) or width // heads,
    )
    return decoder.operations(tokens)


def formula_operations(
    config: LacoConfig, mergers: Sequence[MergerSpec] | None = None
) -> Operations:
    """Operations by formula.

    Args:
        config: of the model.
        mergers: in place of the configuration's; several may stand after one block.
    """
    vision, width = config.vision, config.vision.hidden_size
    prefix = find_tower(vision.model_type).prefix_tokens
    grid = config.patch_grid
    patch = vision.num_channels * square_side(vision.patch_size) ** 2
    embedding = 2 * grid[0] * grid[1] * patch * width
    blocks = merging = 0
    specs = config.merger_specs if mergers is None else mergers
    for number in range(1, vision.num_hidden_layers + 1):
        blocks += block_operations(vision, prefix + grid[0] * grid[1])
        for spec in specs:
            if spec.after_block == number:
                merging += merger_operations(spec, width, grid)
                grid = spec.merged_grid(grid)
    merged, out = grid[0] * grid[1], config.text.hidden_size
    return Operations(
        embedding=embedding,
        blocks=blocks,
        mergers=merging,
        projector=2 * merged * (width * out + out * out),
        prefill=prefill_operations(config.text, merged),
    )


def behind_encoder(config: LacoConfig) -> tuple[MergerSpec, ...]:
    """The same mergers, all behind the last block: what the paper calls LaCo@1."""
    last = config.vision.num_hidden_layers
    return tuple(replace(spec, after_block=last) for spec in config.merger_specs)


def count_operations(config: LacoConfig) -> Operations:
    """Operations counted while the model's own modules run on the meta device, without memory."""
    model = empty_model(config).model
    encoder = model.vision_encoder
    kind, tower = encoder.tower_type, encoder.tower
    side, width = config.image_size, config.vision.hidden_size
    pixels = _empty(1, config.vision.num_channels, side, side)
    embedding = _count(lambda pixels: kind.embed(tower, pixels), pixels)
    merging, grid = 0, config.patch_grid
    for spec in config.merger_specs:
        merger = encoder.mergers[str(spec.after_block)]
        merging += _count(merger, _empty(1, grid[0] * grid[1], width))
        grid = spec.merged_grid(grid)
    merged = grid[0] * grid[1]
    language_model = cast(Any, model.language_model)
    # Given as a mapping, transformers looks for no packed sequences, which it could not on meta.
    mask = dict.fromkeys(config.text.layer_types or ())
    return Operations(
        embedding=embedding,
        blocks=_count(encoder, pixels) - embedding - merging,
        mergers=merging,
        projector=_count(model.projector, _empty(1, merged, width)),
        prefill=_count(
            lambda tokens: language_model(
                inputs_embeds=tokens, attention_mask=mask, use_cache=False
            ),
            _empty(1, merged, config.text.hidden_size),
        ),
    )


def count_parameters(config: LacoConfig) -> Parameters:
    """Weights of each part, counted on the modules without memory for them."""
    whole = empty_model(config)
    model, encoder = whole.model, whole.model.vision_encoder
    head = 0 if config.tie_word_embeddings else _weights(whole.lm_head)
    return Parameters(
        tower=_weights(encoder.tower),
        mergers=_weights(encoder.mergers),
        projector=_weights(model.projector),
        language_model=_weights(model.language_model) + head,
        image_newline=0 if model.image_newline is None else model.image_newline.numel(),
    )


def empty_model(config: LacoConfig) -> LacoForConditionalGeneration:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return LacoForConditionalGeneration(config)


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _count(run: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(inputs)
    return counter.get_total_flops()


__all__ = [
    "Operations",
    "Parameters",
    "behind_encoder",
    "block_operations",
    "count_operations",
    "count_parameters",
    "empty_model",
    "formula_operations",
    "merger_operations",
    "prefill_operations",
]
