"""Published encoders and language models by name, with what their `config.json` says: no download.

Sources: the `config.json` beside the weights of each `hub_id`; for AIMv2 Huge and 1B also
apple/ml-aim aim-v2/aim/v2/torch/models.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from transformers import (
    Aimv2VisionConfig,
    InternVLVisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from laco_deploy.model.towers import find_tower
from laco_runtimes.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One published model: its settings, and what they must add up to."""

    name: str
    hub_id: str
    """Where the weights are published."""
    parameters: int
    """Of `config()`, as this package builds it: without pooling heads."""
    config_class: type[PreTrainedConfig]
    settings: Mapping[str, Any]
    blocks: int
    """Blocks of `config()`."""
    published_blocks: int
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    """Ids of a language model's special tokens by name."""

    def config(self, blocks: int | None = None) -> PreTrainedConfig:
        """A new configuration.

        Args:
            blocks: how many blocks to keep, counted from the first; by default `self.blocks`.

        Raises:
            ConfigError: more blocks than there are, or none.
        """
        blocks = self.blocks if blocks is None else blocks
        if not 1 <= blocks <= self.published_blocks:
            raise ConfigError(
                f"{blocks} blocks were asked for, {self.name} has {self.published_blocks}. "
                f"Choose 1 to {self.published_blocks}."
            )
        return self.config_class(**{**self.settings, "num_hidden_layers": blocks})

    @property
    def mean(self) -> tuple[float, float, float]:
        """Of the published preprocessing of an encoder, for RGB in 0..1."""
        return find_tower(self.config_class.model_type).mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Of the published preprocessing of an encoder, for RGB in 0..1."""
        return find_tower(self.config_class.model_type).std


def _aimv2(size: str, image_size: int, parameters: int) -> Preset:
    width, hidden, heads = {
        "large": (1024, 2816, 8),
        "huge": (1536, 4096, 12),
        "1b": (2048, 5632, 16),
    }[size]
    return Preset(
        name=f"aimv2-{size}-{image_size}",
        hub_id=f"apple/aimv2-{size.upper() if size == '1b' else size}-patch14-{image_size}",
        parameters=parameters,
        config_class=Aimv2VisionConfig,
        settings={
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_attention_heads": heads,
            "image_size": image_size,
            "patch_size": 14,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "qkv_bias": False,
            "mlp_bias": False,
            "use_head": False,
            "is_native": False,
        },
        blocks=24,
        published_blocks=24,
    )


def _table(*presets: Preset) -> Mapping[str, Preset]:
    return MappingProxyType({preset.name: preset for preset in presets})


VISION_PRESETS: Mapping[str, Preset] = _table(
    _aimv2("large", 224, 309_197_824),
    _aimv2("large", 336, 309_525_504),
    _aimv2("large", 448, 309_984_256),
    _aimv2("huge", 448, 682_031_616),
    _aimv2("1b", 448, 1_236_531_200),
    Preset(
        name="siglip-so400m-384",
        hub_id="google/siglip-so400m-patch14-384",
        parameters=397_745_440,
        config_class=SiglipVisionConfig,
        settings={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "vision_use_head": False,
        },
        # LLaVA-OneVision deletes the last one (LLaVA-NeXT, multimodal_encoder/siglip_encoder.py).
        blocks=26,
        published_blocks=27,
    ),
    Preset(
        name="internvit-300m-448",
        hub_id="OpenGVLab/InternViT-300M-448px",
        parameters=304_012_288,
        config_class=InternVLVisionConfig,
        settings={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "image_size": 448,
            "patch_size": 14,
            "hidden_act": "gelu",
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "attention_bias": True,
            "use_qk_norm": False,
            "layer_scale_init_value": 1.0,
        },
        blocks=24,
        published_blocks=24,
    ),
)
"""Encoders by name."""

LANGUAGE_PRESETS: Mapping[str, Preset] = _table(
    Preset(
        name="qwen2.5-0.5b",
        hub_id="Qwen/Qwen2.5-0.5B-Instruct",
        parameters=494_032_768,
        config_class=Qwen2Config,
        settings={
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": True,
            "bos_token_id": 151_643,
            "eos_token_id": 151_645,
        },
        blocks=24,
        published_blocks=24,
        special_tokens={
            "<|endoftext|>": 151_643,
            "<|im_start|>": 151_644,
            "<|im_end|>": 151_645,
            "<|image_pad|>": 151_655,
        },
    ),
)
"""Language models by name."""


def find_preset(what: str, name: str, table: Mapping[str, Preset]) -> Preset:
    """The preset of that name.

    Args:
        what: what the table holds, for the message.
        name: as a user typed it.
        table: `VISION_PRESETS` or `LANGUAGE_PRESETS`.

    Raises:
        ConfigError: no such preset; the message lists all and names the nearest.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name.lower(), table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"unknown {what} {name!r}: neither a folder nor a preset.{hint} "
        f"Presets: {', '.join(table)}."
    )


__all__ = ["LANGUAGE_PRESETS", "VISION_PRESETS", "Preset", "find_preset"]
