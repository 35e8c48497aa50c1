"""`LacoConfig`: a vision encoder, the mergers inside it, and a language model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import (
    Aimv2VisionConfig,
    InternVLVisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig

from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.towers import find_tower
from laco_runtimes.errors import ConfigError
from laco_runtimes.manifest import ImageLayout
from laco_runtimes.tiling import IMAGE_MODES, ImageMode, TokenLayout

VisionConfig = Aimv2VisionConfig | SiglipVisionConfig | InternVLVisionConfig


@strict
class LacoConfig(PreTrainedConfig):
    """Configuration of `LacoForConditionalGeneration`.

    Args:
        vision_config: the vision encoder, of a `model_type` in `laco_deploy.model.towers.TOWERS`.
        text_config: the language model (Qwen2).
        mergers: list of `MergerSpec` fields as dicts, in order of `after_block`; empty for an
            uncompressed model. By default a LaCo merger after a quarter of the blocks.
        image_token_id: id that stands for one visual token in `input_ids`.
        projector_hidden_act: activation of the two-layer projector.
        image_mode: "square" (every image is one tile) or "anyres" (an image alone in its prompt is
            a tile of the whole and a grid of tiles of its parts).
        max_tiles: in "anyres", a detail map keeps at most about as many tokens as so many tiles.
        image_newline: whether a learned vector ends each row of a detail map, and each image of one
            tile.
        video_pool_stride: factor by which the sides of a video frame are pooled behind the
            projector; 1 is not at all.

    Raises:
        ConfigError: an unknown encoder, mergers out of order or range, a grid of which nothing is
            left, a width that the attention heads do not divide, or a setting out of range.
    """

    model_type = "laco"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="aimv2_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }
    keys_to_ignore_at_inference = ["past_key_values"]

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    mergers: list[dict[str, Any]] | None = None
    image_token_id: int = 151655
    projector_hidden_act: str = "gelu"
    tie_word_embeddings: bool = False
    image_mode: str = "square"
    max_tiles: int = 9
    image_newline: bool = False
    video_pool_stride: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.vision_config, dict):  # before transformers looks among all its models
            find_tower(self.vision_config.get("model_type", "aimv2_vision_model"))
        super().__post_init__(**kwargs)
        if self.mergers is None:
            quarter = max(self.vision.num_hidden_layers // 4, 1)
            self.mergers = [asdict(MergerSpec(after_block=quarter))]
        # Rewritten from the specs, so that a saved config names every setting in force.
        self.mergers = [asdict(spec) for spec in self.merger_specs]
        self.tie_word_embeddings = bool(self.text.tie_word_embeddings)
        self._check_mergers()
        self._check_heads()
        self._check_images()

    @property
    def vision(self) -> VisionConfig:
        """The vision configuration, typed."""
        return cast(VisionConfig, self.vision_config)

    @property
    def text(self) -> Qwen2Config:
        """The language model configuration, typed."""
        return cast(Qwen2Config, self.text_config)

    @property
    def merger_specs(self) -> tuple[MergerSpec, ...]:
        """The mergers, checked, in the order in which they stand in the encoder."""
        return tuple(MergerSpec.from_dict(dict(values)) for values in self.mergers or ())

    @property
    def image_size(self) -> int:
        """S, side of the square input in pixels."""
        return square_side(self.vision.image_size)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(H, W) of the patches before any merger; what is left of the last one is not used."""
        side = self.image_size // square_side(self.vision.patch_size)
        return side, side

    @property
    def merged_grid(self) -> tuple[int, int]:
        """(H', W') of the visual tokens that reach the language model."""
        grid = self.patch_grid
        for spec in self.merger_specs:
            grid = spec.merged_grid(grid)
        return grid

    @property
    def tokens_per_tile(self) -> int:
        """N': visual tokens of one image tile, without CLS and `image_newline`."""
        return self.token_layout.tokens_per_tile

    @property
    def token_layout(self) -> TokenLayout:
        """How the visual tokens of tiles become those of images and videos."""
        return TokenLayout(
            image_size=self.image_size,
            merged_grid=self.merged_grid,
            image_mode=cast(ImageMode, self.image_mode),
            max_tiles=self.max_tiles,
            newline=self.image_newline,
            video_pool_stride=self.video_pool_stride,
        )

    @property
    def image_layout(self) -> ImageLayout:
        """The same settings, as a bundle states them for all its vision encoders."""
        return ImageLayout(
            image_mode=cast(ImageMode, self.image_mode),
            newline=self.image_newline,
            max_tiles=self.max_tiles,
            video_pool_stride=self.video_pool_stride,
        )

    def _check_mergers(self) -> None:
        blocks, last = self.vision.num_hidden_layers, 0
        for spec in self.merger_specs:
            if spec.after_block > blocks:
                raise ConfigError(
                    f"merger after_block is {spec.after_block}, but the encoder has {blocks} "
                    f"blocks. Choose 1 to {blocks}."
                )
            if spec.after_block <= last:
                raise ConfigError(
                    "mergers must stand in rising order, one at most after each block. "
                    f"Found after_block {spec.after_block} behind {last}."
                )
            last = spec.after_block
        if min(self.merged_grid) < 1:  # no merger, and an image smaller than a patch
            raise ConfigError(
                f"an image of {self.image_size} pixels holds no patch. Choose a larger image_size."
            )

    def _check_heads(self) -> None:
        for name, part in (("vision encoder", self.vision), ("language model", self.text)):
            width, heads = part.hidden_size, part.num_attention_heads
            if getattr(part, "head_dim", None) is None and width % heads:
                raise ConfigError(
                    f"the {name} is {width} wide, which {heads} attention heads do not divide. "
                    "Choose a width that is a multiple of the heads."
                )

    def _check_images(self) -> None:
        if self.image_mode not in IMAGE_MODES:
            near = difflib.get_close_matches(str(self.image_mode), IMAGE_MODES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"unknown image_mode {self.image_mode!r}. Known: {', '.join(IMAGE_MODES)}.{hint}"
            )
        for name in ("max_tiles", "video_pool_stride"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}. It must be a whole number from 1.")
        if not isinstance(self.image_newline, bool):
            raise ConfigError(f"image_newline is {self.image_newline!r}. It must be true or false.")


def square_side(size: int | Sequence[int]) -> int:
    """Side of a square that transformers may give as a number or as a pair.

    Raises:
        ConfigError: the sides differ.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f"an image or patch of {size} is not square. Use a square encoder.")
    return sides.pop()


__all__ = ["LacoConfig", "VisionConfig", "square_side"]
