"""What the walk over the blocks and the loading of weights must know about an encoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from laco_deploy.model.towers.keys import KeyLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerType:
    """One kind of vision encoder. Shapes: B images, P prefix tokens, N patches, C encoder width.

    The callables take the module that `build` made.
    """

    config_class: type[PreTrainedConfig]
    weights_class: type[PreTrainedModel]
    """Class of transformers, or a subclass that leaves parts out; its names are those of files."""
    embed: Callable[[Any, Tensor], Tensor]
    """[B, 3, S, S] pixels -> [B, P + N, C], positions added."""
    blocks: Callable[[Any], nn.ModuleList]
    run_block: Callable[[Any, Tensor], Tensor]
    """One of the blocks, [B, P + N, C] -> [B, P + N, C]."""
    final_norm: Callable[[Any], nn.Module]
    """What stands behind the last block; `nn.Identity` where a language model reads it raw."""
    mean: tuple[float, float, float]
    """Of the published preprocessing, for RGB in 0..1."""
    std: tuple[float, float, float]
    prefix_tokens: int = 0
    """P: tokens before those of the patches (CLS)."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the configuration that this package does not leave open."""
    published_types: tuple[str, ...] = ()
    """Further `model_type` of published folders that hold such an encoder."""
    published_settings: Mapping[str, str] = field(default_factory=dict)
    """Settings that published folders name otherwise: their name -> that in `config_class`."""
    layouts: tuple[KeyLayout, ...]
    """Ways in which published folders name the weights."""
    block_names: str
    """What stands before the number of a block in the name of its weights."""

    def build(self, config: PreTrainedConfig) -> nn.Module:
        """Make the encoder with random weights; `fixed` is written into `config`."""
        self.fix(config)
        return self.weights_class(config)

    def fix(self, config: PreTrainedConfig) -> None:
        """Write `fixed` into `config`."""
        for name, value in self.fixed.items():
            setattr(config, name, value)

    def read_config(self, values: Mapping[str, Any]) -> PreTrainedConfig:
        """Configuration of the encoder from the `config.json` of a published folder.

        What the encoder has no setting for is dropped: other parts, `auto_map` (code to run).
        """
        values = values.get("vision_config", values)
        named = {self.published_settings.get(name, name): value for name, value in values.items()}
        settings = inspect.get_annotations(self.config_class)
        kept = {name: named[name] for name in settings if name in named}
        return self.config_class(**{**kept, **self.fixed})


__all__ = ["TowerType"]
