"""What `laco bench` compares a model with: the same weights, merged elsewhere, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from laco_deploy.downsampled import DownsampledEncoder, smaller_vision
from laco_deploy.model.config import LacoConfig
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.model.vision import LacoVisionEncoder
from laco_export.job import VariantSource
from laco_runtimes.manifest import MergerFacts


class BaselineEncoder(nn.Module):
    """The trained encoder without the mergers inside it, and those given behind it.

    Args:
        config: of the trained model.
        model: whose weights are used, and shared.
        mergers: applied in order after the encoder's final norm.
    """

    def __init__(
        self, config: LacoConfig, model: LacoForConditionalGeneration, mergers: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        plain = LacoConfig.from_dict({**config.to_dict(), "mergers": []})
        with torch.device("meta"):  # no memory: the tower is the trained one
            self.encoder = LacoVisionEncoder(plain)
        self.encoder.tower = model.model.vision_encoder.tower
        self.mergers = nn.ModuleList(mergers)
        self.projector = model.model.projector

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[tiles, 3, S, S] -> [tiles, N', D]."""
        tokens = self.encoder(pixel_values)  # [tiles, N, C]
        for merger in self.mergers:
            tokens = merger(tokens)
        return self.projector(tokens)  # type: ignore[no-any-return]


def _uncompressed(config: LacoConfig) -> VariantSource:
    """No merger at all: every patch reaches the language model."""
    return VariantSource("uncompressed", (), config.patch_grid)


def _external(config: LacoConfig) -> VariantSource:
    """The same mergers behind the encoder: as few tokens in the end, none saved on the way."""
    blocks = config.vision.num_hidden_layers
    mergers = tuple(
        MergerFacts(kind=one.kind, after_block=blocks, ratio=one.ratio)
        for one in config.merger_specs
    )
    return VariantSource("external", mergers, config.merged_grid)


def _downsampled(config: LacoConfig) -> VariantSource:
    """No merger, and an image so small that as few patches cover it.

    Raises:
        ConfigError: the tower's positions cannot be resampled, or the tokens are no square.
    """
    smaller_vision(config)
    return VariantSource("downsampled", (), config.merged_grid)


BASELINES: dict[str, Callable[[LacoConfig], VariantSource]] = {
    "uncompressed": _uncompressed,
    "external": _external,
    "downsampled": _downsampled,
}
"""What `laco bench` compares with. They share the language model and all weights, and were not
trained this way: right about time, not words."""


def baseline_encoder(
    name: str, config: LacoConfig, model: LacoForConditionalGeneration
) -> BaselineEncoder | DownsampledEncoder:
    """The module of one row of `BASELINES`, on the weights of the trained model.

    Raises:
        ConfigError: the model has no such baseline.
    """
    return _ENCODERS[name](config, model)


def _behind(config: LacoConfig, model: LacoForConditionalGeneration) -> BaselineEncoder:
    inside = model.model.vision_encoder.mergers
    moved = [inside[str(one.after_block)] for one in config.merger_specs]
    return BaselineEncoder(config, model, moved)


_ENCODERS: dict[
    str,
    Callable[[LacoConfig, LacoForConditionalGeneration], BaselineEncoder | DownsampledEncoder],
] = {
    "uncompressed": lambda config, model: BaselineEncoder(config, model, ()),
    "external": _behind,
    "downsampled": DownsampledEncoder,
}

__all__ = ["BASELINES", "BaselineEncoder", "baseline_encoder"]
