"""What a manifest says of a model, from its configuration."""

from __future__ import annotations

from laco_deploy.model.config import LacoConfig, square_side
from laco_runtimes.manifest import LanguageFacts, MergerFacts, VisionFacts


def vision_facts(config: LacoConfig) -> VisionFacts:
    """Shapes of the encoder."""
    vision = config.vision
    return VisionFacts(
        model_type=vision.model_type,
        blocks=vision.num_hidden_layers,
        width=vision.hidden_size,
        image_size=config.image_size,
        patch_size=square_side(vision.patch_size),
    )


def language_facts(config: LacoConfig) -> LanguageFacts:
    """Shapes of the language model."""
    text = config.text
    heads = text.num_attention_heads
    return LanguageFacts(
        model_type=text.model_type,
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        heads=heads,
        kv_heads=text.num_key_value_heads or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
    )


def merger_facts(config: LacoConfig) -> tuple[MergerFacts, ...]:
    """The mergers inside the encoder."""
    return tuple(
        MergerFacts(kind=one.kind, after_block=one.after_block, ratio=one.ratio)
        for one in config.merger_specs
    )


__all__ = ["language_facts", "merger_facts", "vision_facts"]
