"""`LacoProcessor`: prompts with images and videos to the inputs of the model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, cast

from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.image_processing import LacoImageProcessor, own_image_processor
from laco_deploy.model.visual_inputs import IMAGE_MARK, VIDEO_MARK, deal, deal_without_text
from laco_runtimes.errors import ArgumentError
from laco_runtimes.images import Preprocessing
from laco_runtimes.prompt import DEFAULT_SYSTEM
from laco_runtimes.tiling import TokenLayout

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")

# A mark that is alone in its turn goes to the front of it, as LLaVA trains; several stay in place.
_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
SYSTEM<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- set visuals = message['content'] | selectattr('type', 'in', ['image', 'video']) | list -%}
{%- set marks = {'image': 'IMAGE\\n', 'video': 'VIDEO\\n'} -%}
{%- if visuals | length == 1 -%}{{ marks[visuals[0]['type']] }}{%- endif -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}
{%- elif visuals | length > 1 -%}{{ marks[part['type']] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def chat_template_for(image_token: str) -> str:
    """ChatML with LLaVA's system turn where a dialogue has none of its own (Jinja)."""
    names = {"SYSTEM": DEFAULT_SYSTEM, "IMAGE": image_token, "VIDEO": VIDEO_MARK}
    return re.sub("|".join(names), lambda found: names[found.group()], _CHAT_TEMPLATE)


class LacoProcessor(ProcessorMixin):
    """Prompts with images and videos to the inputs of `LacoForConditionalGeneration`.

    In a text, `<image>` (or the tokenizer's image token) stands for an image and `<video>` for the
    frames of a video; both become as many image tokens as the model will put there. Padding is on
    the left, as `generate` needs it; ask for `padding_side="right"` to train.

    Args:
        image_processor: one that is no `LacoImageProcessor` only gives its size, mean and std.
        tokenizer: with ChatML tokens and an image token.
        chat_template: ChatML with LLaVA's short system turn by default.
        image_token: text of the token that stands for one visual token.
        merged_grid: (H', W') tokens of a tile.
        max_tiles: see `LacoConfig`.
        image_newline: see `LacoConfig`.
        video_pool_stride: see `LacoConfig`.

    Raises:
        ArgumentError: no `merged_grid`, or a tokenizer without the image token.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        image_token: str = "<|image_pad|>",
        merged_grid: Sequence[int] | None = None,
        max_tiles: int = 9,
        image_newline: bool = False,
        video_pool_stride: int = 1,
    ) -> None:
        if merged_grid is None:
            raise ArgumentError(
                "a LacoProcessor needs merged_grid, the tokens of a tile. Load it from a "
                "checkpoint folder, or make it with LacoProcessor.from_config."
            )
        # By name: tokenizers differ in the number and order of additional special tokens.
        self.image_token_id = tokenizer.get_vocab().get(image_token)
        if self.image_token_id is None:
            raise ArgumentError(
                f"the tokenizer has no {image_token} token. Use the tokenizer of the checkpoint."
            )
        self.image_token = image_token
        self.merged_grid = list(merged_grid)
        self.max_tiles = max_tiles
        self.image_newline = image_newline
        self.video_pool_stride = video_pool_stride
        if "padding_side" not in tokenizer.init_kwargs:
            tokenizer.padding_side = "left"
        tokenizer.chat_template = chat_template or chat_template_for(image_token)
        super().__init__(
            own_image_processor(image_processor), tokenizer, chat_template=tokenizer.chat_template
        )

    @classmethod
    def from_config(
        cls, config: LacoConfig, tokenizer: PreTrainedTokenizerBase, preprocessing: Preprocessing
    ) -> LacoProcessor:
        """The processor of a model.

        Raises:
            ArgumentError: the tokenizer has no token of id `config.image_token_id`.
        """
        image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
        if image_token is None:
            raise ArgumentError(
                f"the tokenizer has no token {config.image_token_id}, the model's image_token_id. "
                "Set it to the id of the tokenizer's image token."
            )
        return cls(
            LacoImageProcessor(
                size=config.image_size,
                image_mode=config.image_mode,
                image_mean=preprocessing.mean,
                image_std=preprocessing.std,
            ),
            tokenizer,
            image_token=str(image_token),
            **_settings(config),
        )

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `processor_config.json`, or where there is none `config.json`.

        The version before wrote none, and a chat template without the system turn.
        """
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        values, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "merged_grid" not in values:
            config = LacoConfig.from_pretrained(pretrained_model_name_or_path, **hub)
            values = {**values, **_settings(config), "chat_template": None}
        return values, rest

    @property
    def token_layout(self) -> TokenLayout:
        """How many tokens an image or a video becomes."""
        rows, columns = self.merged_grid
        return TokenLayout(
            image_size=self.image_processor.size["height"],
            merged_grid=(rows, columns),
            image_mode=self.image_processor.image_mode,
            max_tiles=self.max_tiles,
            newline=self.image_newline,
            video_pool_stride=self.video_pool_stride,
        )

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make the inputs of the model.

        Args:
            images: one, a list in the order of the marks, or one list per text. Each is a PIL
                image, a path, a URL, bytes, or a uint8 array or tensor of RGB values.
            text: one or more prompts; None for the pixels alone.
            videos: as `images`; each is a list of frames, or an array [frames, H, W, 3].
            audio: not supported.
            **kwargs: options of the tokenizer (`padding`, `padding_side`, `return_tensors`, ...),
                and `image_mode` in place of the processor's own.

        Returns:
            input_ids and attention_mask [batch, sequence]; with images or videos pixel_values
            [tiles, 3, S, S], image_sizes [images and videos, 2] and num_tiles [images and videos];
            with videos also is_video.

        Raises:
            ArgumentError: marks that are not as many as the images or videos, no text and no
                image, or audio.
            ImageError: an image that cannot be read.
        """
        if audio is not None:
            raise ArgumentError("the model does not hear. Leave audio out.")
        texts = [text] if isinstance(text, str) else text
        if texts is None:
            visuals = deal_without_text(images, videos)
        else:
            visuals = deal(self._marks(texts), images, videos)
            texts = [self._any_mark.sub(self.image_token, one) for one in texts]
        # What follows is transformers' own: options, expanding the marks, tokens, tensors.
        return cast(BatchFeature, super().__call__(images=visuals or None, text=texts, **kwargs))

    @property
    def _any_mark(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, (IMAGE_MARK, VIDEO_MARK, self.image_token))))

    def _marks(self, texts: Any) -> list[list[str]]:
        """The marks of each text, in order."""
        if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
            raise ArgumentError("text is neither a string nor a list of strings. Give one of them.")
        return [
            [
                VIDEO_MARK if mark == VIDEO_MARK else IMAGE_MARK
                for mark in self._any_mark.findall(one)
            ]
            for one in texts
        ]

    def validate_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is left to check: `__call__` has matched marks, images and videos."""

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        """Called by transformers with what `__call__` gave; the text that replaces each mark."""
        values, layout = self.image_processor.pack(images, **kwargs), self.token_layout
        sizes, counts = values["image_sizes"].tolist(), values["num_tiles"].tolist()
        tokens = [
            layout.video_tokens(count)
            if visual.is_video
            else layout.image_tokens(tuple(size), count)
            for visual, size, count in zip(images, sizes, counts, strict=True)
        ]
        return values, [self.image_token * count for count in tokens]


def _settings(config: LacoConfig) -> dict[str, Any]:
    """What a processor must know of the model."""
    return {
        "merged_grid": config.merged_grid,
        "max_tiles": config.max_tiles,
        "image_newline": config.image_newline,
        "video_pool_stride": config.video_pool_stride,
    }


__all__ = ["LacoImageProcessor", "LacoProcessor", "chat_template_for"]
