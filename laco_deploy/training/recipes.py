"""Training recipes for models small enough to be trained from scratch on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from laco_deploy.model.config import LacoConfig
from laco_runtimes.images import Preprocessing

# Channel statistics of CLIP, which AIMv2's published preprocessor files carry.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One model from scratch: its shapes, its data and its schedule."""

    name: str
    image_size: int
    """Side of the square input in pixels."""
    patch_size: int = 7
    vision_blocks: int
    vision_width: int
    vision_heads: int
    text_layers: int
    text_width: int
    text_heads: int
    text_kv_heads: int
    after_block: int
    """k: the merger stands behind this block, counted from 1."""
    ratio: int = 2
    vocab_size: int = 768
    max_positions: int = 1024
    """Context of the language model in tokens."""
    vision_init: float = 0.03
    """Standard deviation of the encoder's fresh weights. 0.02 and 0.03 learned digits faster than
    0.06 and 0.1 in single short runs (docs/model.md)."""
    text_init: float = 0.15
    """The same of the language model. At the usual 0.02, meant for widths near 1,000, single digits
    were at chance after 134 steps where 0.15 had 38 % (docs/model.md)."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Pictures per split."""
    groups: tuple[str, ...] = ("digits", "shapes", "text", "charts")
    steps: int
    batch_size: int
    learning_rate: float
    """Peak of a cosine schedule that ends at zero."""
    warmup_steps: int
    weight_decay: float = 0.05
    log_every: int = 50
    """Steps."""

    def preprocessing(self) -> Preprocessing:
        """How its images become pixels."""
        return Preprocessing(image_size=self.image_size, mean=CLIP_MEAN, std=CLIP_STD)

    def config(self, *, image_token_id: int, eos_token_id: int, pad_token_id: int) -> LacoConfig:
        """The model's configuration for a tokenizer's ids."""
        vision: dict[str, Any] = {
            "model_type": "aimv2_vision_model",
            "hidden_size": self.vision_width,
            "intermediate_size": self.vision_width * 11 // 4,  # AIMv2's own proportion
            "num_hidden_layers": self.vision_blocks,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "initializer_range": self.vision_init,
            "use_head": False,
        }
        text: dict[str, Any] = {
            "model_type": "qwen2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.text_width,
            "intermediate_size": self.text_width * 11 // 4,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text_heads,
            "num_key_value_heads": self.text_kv_heads,
            "head_dim": self.text_width // self.text_heads,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": True,
            "initializer_range": self.text_init,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }
        return LacoConfig(
            vision_config=vision,
            text_config=text,
            mergers=[{"after_block": self.after_block, "ratio": self.ratio}],
            image_token_id=image_token_id,
        )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                name="tiny",
                image_size=84,
                vision_blocks=4,
                vision_width=128,
                vision_heads=4,
                text_layers=4,
                text_width=128,
                text_heads=4,
                text_kv_heads=1,
                after_block=1,
                counts={"train": 30_000, "val": 600, "test": 2_100},
                steps=5_800,
                batch_size=32,
                learning_rate=1e-3,
                warmup_steps=150,
            ),
            Recipe(
                name="micro",
                image_size=56,
                vision_blocks=4,
                vision_width=64,
                vision_heads=2,
                text_layers=2,
                text_width=64,
                text_heads=2,
                text_kv_heads=1,
                after_block=1,
                vocab_size=384,
                counts={"train": 320, "val": 16, "test": 32},
                groups=("digits", "shapes"),
                steps=80,
                batch_size=16,
                learning_rate=2e-3,
                warmup_steps=10,
                log_every=10,
            ),
        )
    }
)
"""By name: `tiny` makes the shipped checkpoint, `micro` takes the same path in a minute."""

__all__ = ["RECIPES", "Recipe"]
