"""`LacoConfig`: a vision encoder, the mergers inside it, and a language model."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from huggingface_hub.dataclasses import strict
from transformers import Aimv2VisionConfig, PreTrainedConfig, Qwen2Config
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig

from laco_runtimes.errors import ConfigError

MergerKind = Literal["laco"]
MergerNorm = Literal["layer_norm", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergerSpec:
    """One merger of an encoder.

    Raises:
        ConfigError: an unknown kind or norm, or a ratio or position below its minimum.
    """

    after_block: int
    """k, counted from 1: the merger stands between block k and block k + 1. k = number of blocks
    puts it behind the encoder, after its final norm ("LaCo@1" in the paper)."""
    kind: MergerKind = "laco"
    ratio: int = 2
    """r: r x r patches become one token."""
    norm: MergerNorm = "layer_norm"
    """Normalisation of the MLP branch; the shortcut is never normalised."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, get_args(MergerKind)),
            ("norm", self.norm, get_args(MergerNorm)),
        ):
            if value not in known:
                near = difflib.get_close_matches(str(value), known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ConfigError(
                    f"unknown merger {name} {value!r}. Known: {', '.join(known)}.{hint}"
                )
        if self.ratio < 2:
            raise ConfigError(f"merger ratio is {self.ratio}. It must be at least 2.")
        if self.after_block < 1:
            raise ConfigError(
                f"merger after_block is {self.after_block}. Blocks are counted from 1."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MergerSpec:
        """Read one entry of `config.json`; unknown keys are an error, not ignored."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                f"unknown merger setting {unknown[0]!r}. Known: {', '.join(sorted(known))}."
            )
        return cls(**values)


@strict
class LacoConfig(PreTrainedConfig):
    """Configuration of `LacoForConditionalGeneration`.

    Args:
        vision_config: the vision encoder (AIMv2).
        text_config: the language model (Qwen2).
        mergers: list of `MergerSpec` fields as dicts, in order of `after_block`; empty for an
            uncompressed model.
        image_token_id: id that stands for one visual token in `input_ids`.
        projector_hidden_act: activation of the two-layer projector.

    Raises:
        ConfigError: mergers out of order or range, or a grid that does not divide.
    """

    model_type = "laco"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="aimv2_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    mergers: list[dict[str, Any]] | None = None
    image_token_id: int = 151655
    projector_hidden_act: str = "gelu"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.mergers is None:
            self.mergers = [asdict(MergerSpec(after_block=self.vision.num_hidden_layers // 4))]
        # Rewritten from the specs, so that a saved config names every setting in force.
        self.mergers = [asdict(spec) for spec in self.merger_specs]
        self.tie_word_embeddings = bool(self.text.tie_word_embeddings)
        self._check_mergers()

    @property
    def vision(self) -> Aimv2VisionConfig:
        """The vision configuration, typed."""
        return cast(Aimv2VisionConfig, self.vision_config)

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
        """(H, W) of the patches before any merger."""
        side = self.image_size // square_side(self.vision.patch_size)
        return side, side

    @property
    def merged_grid(self) -> tuple[int, int]:
        """(H', W') of the visual tokens that reach the language model."""
        height, width = self.patch_grid
        for spec in self.merger_specs:
            height, width = height // spec.ratio, width // spec.ratio
        return height, width

    @property
    def tokens_per_tile(self) -> int:
        """N': visual tokens of one image tile."""
        height, width = self.merged_grid
        return height * width

    def _check_mergers(self) -> None:
        blocks = self.vision.num_hidden_layers
        height, width = self.patch_grid
        last = 0
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
            if height % spec.ratio or width % spec.ratio:
                raise ConfigError(
                    f"a {height}x{width} patch grid does not divide into "
                    f"{spec.ratio}x{spec.ratio} windows. Choose a ratio that divides both sides."
                )
            height, width, last = height // spec.ratio, width // spec.ratio, spec.after_block


def square_side(size: int | Sequence[int]) -> int:
    """Side of a square that transformers may give as a number or as a pair.

    Raises:
        ConfigError: the sides differ.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f"an image or patch of {size} is not square. Use a square encoder.")
    return sides.pop()


__all__ = ["LacoConfig", "MergerKind", "MergerNorm", "MergerSpec", "square_side"]
