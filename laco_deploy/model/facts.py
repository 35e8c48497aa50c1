"""What a configuration says of a model before a weight is read: for `laco info` and model cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from laco_deploy.model.config import LacoConfig, square_side
from laco_deploy.model.cost import (
    Operations,
    Parameters,
    behind_encoder,
    count_parameters,
    formula_operations,
)

_GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Shapes, sizes and theoretical cost of a model, all per tile of S x S pixels."""

    config: LacoConfig
    parameters: Parameters
    operations: Operations
    behind: Operations
    """With the same mergers behind the encoder (the paper's LaCo@1)."""
    uncompressed: Operations
    """Without mergers."""

    def to_json(self) -> dict[str, Any]:
        """Every fact as plain values; operations in GFLOP."""
        config = self.config
        vision, text = config.vision, config.text
        height, width = config.patch_grid
        return {
            "vision": {
                "model_type": vision.model_type,
                "blocks": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "image_size": config.image_size,
                "patch_size": square_side(vision.patch_size),
                "patch_grid": [height, width],
            },
            "language_model": {
                "model_type": text.model_type,
                "layers": text.num_hidden_layers,
                "width": text.hidden_size,
                "vocab_size": text.vocab_size,
                "max_positions": text.max_position_embeddings,
            },
            "mergers": [asdict(spec) for spec in config.merger_specs],
            "image_mode": config.image_mode,
            "tokens_per_tile": config.tokens_per_tile,
            "tokens_per_tile_uncompressed": height * width,
            "parameters": {**asdict(self.parameters), "total": self.parameters.total},
            "gflop_per_tile": _gflop(self.operations),
            "gflop_per_tile_behind_encoder": _gflop(self.behind),
            "gflop_per_tile_uncompressed": _gflop(self.uncompressed),
            "encoder_ratio_to_behind_encoder": self.operations.encoder / self.behind.encoder,
            "encoder_ratio_to_uncompressed": self.operations.encoder / self.uncompressed.encoder,
            "prefill_ratio_to_uncompressed": self.operations.prefill / self.uncompressed.prefill,
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        """The same for people: a name and a line of text each."""
        config, sizes, cost = self.config, self.parameters, self.operations
        vision, text = config.vision, config.text
        (height, width), patches = config.patch_grid, config.patch_grid[0] * config.patch_grid[1]
        yield (
            "vision encoder",
            f"{vision.model_type}, {vision.num_hidden_layers} blocks x {vision.hidden_size}, "
            f"{config.image_size} px, {height}x{width} patches of "
            f"{square_side(vision.patch_size)} px",
        )
        yield "mergers", "; ".join(self._mergers()) or "none"
        yield (
            "language model",
            f"{text.model_type}, {text.num_hidden_layers} layers x {text.hidden_size}, "
            f"{text.vocab_size} tokens, context {text.max_position_embeddings}",
        )
        per = "tile" if config.image_mode == "anyres" else "image"
        yield f"visual tokens per {per}", f"{config.tokens_per_tile} of {patches}"
        yield (
            "parameters",
            f"{sizes.total:,}: encoder {sizes.tower:,}, mergers {sizes.mergers:,}, projector "
            f"{sizes.projector:,}, language model {sizes.language_model:,}"
            + (f", image_newline {sizes.image_newline:,}" if sizes.image_newline else ""),
        )
        yield (
            f"GFLOP per {per}",
            f"encoder {cost.encoder / _GIGA:,.1f} (of which mergers {cost.mergers / _GIGA:,.2f}), "
            f"projector {cost.projector / _GIGA:,.2f}, prefill of its tokens "
            f"{cost.prefill / _GIGA:,.1f}",
        )
        if config.merger_specs:
            yield (
                "encoder in theory",
                f"{cost.encoder / self.behind.encoder:.3f} of the same mergers behind the encoder "
                f"(LaCo@1: {self.behind.encoder / _GIGA:,.1f} GFLOP), "
                f"{cost.encoder / self.uncompressed.encoder:.3f} of no compression "
                f"({self.uncompressed.encoder / _GIGA:,.1f} GFLOP)",
            )
            yield (
                "prefill in theory",
                f"{cost.prefill / self.uncompressed.prefill:.3f} of no compression "
                f"({self.uncompressed.prefill / _GIGA:,.1f} GFLOP)",
            )

    def _mergers(self) -> Iterator[str]:
        grid = self.config.patch_grid
        for spec in self.config.merger_specs:
            merged = spec.merged_grid(grid)
            options = "".join(
                f", {name} {value}"
                for name, value in (("shortcut", spec.shortcut), ("norm", spec.norm))
                if value is not None
            )
            yield (
                f"{spec.kind} {spec.ratio}x{spec.ratio} after block {spec.after_block} "
                f"({grid[0]}x{grid[1]} to {merged[0]}x{merged[1]}{options})"
            )
            grid = merged


def model_facts(config: LacoConfig) -> ModelFacts:
    """Work out the facts of a configuration; takes a second and no memory for weights."""
    return ModelFacts(
        config=config,
        parameters=count_parameters(config),
        operations=formula_operations(config),
        behind=formula_operations(config, behind_encoder(config)),
        uncompressed=formula_operations(config, ()),
    )


def _gflop(operations: Operations) -> dict[str, float]:
    values = {**asdict(operations), "encoder": operations.encoder}
    return {name: value / _GIGA for name, value in values.items()}


__all__ = ["ModelFacts", "model_facts"]
