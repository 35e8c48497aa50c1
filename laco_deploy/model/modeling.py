"""`LacoForConditionalGeneration`: compressed vision encoder, projector and language model.

Shapes: T tiles (frames of a video are tiles), N' visual tokens of a tile, D width of the language
model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from laco_deploy.model.assembly import assemble, read_visuals
from laco_deploy.model.config import LacoConfig
from laco_deploy.model.mergers import OwnInit
from laco_deploy.model.vision import LacoVisionEncoder
from laco_runtimes.errors import ArgumentError


@dataclass
class LacoOutput(ModelOutput):
    """Output of the whole model; `logits` is [batch, sequence, vocabulary]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class LacoProjector(nn.Module):
    """Two linear layers from encoder width to language model width (paper section 4.1)."""

    def __init__(self, config: LacoConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.vision.hidden_size, config.text.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.text.hidden_size, config.text.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, N', C] to [B, N', D]."""
        return self.linear_2(self.act(self.linear_1(tokens)))


class LacoPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the classes below."""

    config_class = LacoConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # nn.init throughout, not zero_(): transformers guards loaded weights inside it.
        super()._init_weights(module)
        if isinstance(module, OwnInit):
            module.reset_parameters()
        elif isinstance(module, LacoModel) and module.image_newline is not None:
            nn.init.normal_(module.image_newline, std=1 / math.sqrt(len(module.image_newline)))


class LacoModel(LacoPreTrainedModel):
    """Encoder, projector and language model without its head."""

    image_newline: nn.Parameter | None
    """[D], stands at the end of rows, images and videos."""

    def __init__(self, config: LacoConfig) -> None:
        super().__init__(config)
        self.vision_encoder = LacoVisionEncoder(config)
        self.projector = LacoProjector(config)
        self.language_model = AutoModel.from_config(config.text)
        self.image_newline = None
        if config.image_newline:
            self.image_newline = nn.Parameter(torch.empty(config.text.hidden_size))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.language_model.set_input_embeddings(value)

    @overload
    def get_image_features(self, pixel_values: Tensor) -> Tensor: ...

    @overload
    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = ...,
        num_tiles: Tensor | None = ...,
        is_video: Tensor | None = ...,
        *,
        return_dict: Literal[True],
    ) -> BaseModelOutputWithPooling: ...

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        num_tiles: Tensor | None = None,
        is_video: Tensor | None = None,
        return_dict: bool = False,
    ) -> Tensor | BaseModelOutputWithPooling:
        """Visual tokens in language model width.

        Args:
            pixel_values: [T, 3, S, S].
            image_sizes: as in `forward`, read only with `return_dict`.
            num_tiles: the same.
            is_video: the same.
            return_dict: also lay out the tokens of images and videos, as `generate` asks for.

        Returns:
            The tokens of each tile, [T, N', D]. With `return_dict` these are `last_hidden_state`,
            and `pooler_output` is a list with the tokens of each image or video, [tokens, D].
        """
        dtype = self.projector.linear_1.weight.dtype
        if pixel_values.dtype != dtype:
            pixel_values = pixel_values.to(dtype)
        features = self.projector(self.vision_encoder(pixel_values))  # [T, N', D]
        if not return_dict:
            return features
        visuals = read_visuals(len(features), image_sizes, num_tiles, is_video)
        tokens = assemble(features, visuals, self.config.token_layout, self.image_newline)
        # A list, as `generate` knows it of other models; its type there is that of one tensor.
        return BaseModelOutputWithPooling(features, cast(Any, tokens))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_sizes: Tensor | None = None,
        num_tiles: Tensor | None = None,
        is_video: Tensor | None = None,
        mm_encoder_outputs: dict[str, ModelOutput] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Embed text, put the visual tokens in place of the image ids, run the language model.

        Raises:
            ArgumentError: both or neither of `input_ids` and `inputs_embeds`; images without
                `input_ids`, or given twice; tiles that do not add up; or a number of image ids that
                is not that of the visual tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ArgumentError(
                "both or neither of input_ids and inputs_embeds are given. Give exactly one."
            )
        encoded = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if encoded is not None:
                raise ArgumentError(
                    "both pixel_values and mm_encoder_outputs are given. Give one of them."
                )
            encoded = self.get_image_features(
                pixel_values, image_sizes, num_tiles, is_video, return_dict=True
            )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if encoded is not None:
            visual = torch.cat(list(encoded["pooler_output"]))  # [tokens, D]
            inputs_embeds = self._place(visual, input_ids, inputs_embeds)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )

    def _place(self, visual: Tensor, input_ids: Tensor | None, inputs_embeds: Tensor) -> Tensor:
        """Put [tokens, D] in place of the image ids, row by row of the batch."""
        if input_ids is None:
            raise ArgumentError(
                "images came with inputs_embeds, which do not say where they stand. Give input_ids."
            )
        is_image = input_ids == self.config.image_token_id  # [batch, sequence]
        found, wanted = int(is_image.sum()), visual.shape[0]
        if found != wanted:
            raise ArgumentError(
                f"input_ids hold {found} image tokens, the images give {wanted}. "
                "Make both with the processor of this checkpoint."
            )
        return inputs_embeds.masked_scatter(is_image.unsqueeze(-1), visual.to(inputs_embeds))


class LacoForConditionalGeneration(LacoPreTrainedModel, GenerationMixin):
    """The model people train, save, load and generate with."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: LacoConfig) -> None:
        super().__init__(config)
        self.model = LacoModel(config)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the language model."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model head."""
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens of each tile in language model width: [T, 3, S, S] -> [T, N', D]."""
        return self.model.get_image_features(pixel_values)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        image_sizes: Tensor | None = None,
        num_tiles: Tensor | None = None,
        is_video: Tensor | None = None,
        mm_encoder_outputs: dict[str, ModelOutput] | None = None,
        **kwargs: Any,
    ) -> LacoOutput:
        """Next-token logits, and the loss where `labels` (-100 = not supervised) are given.

        Args:
            input_ids: [batch, sequence]; `image_token_id` marks visual tokens.
            pixel_values: [T, 3, S, S], tiles of the images and frames of the videos, in the order
                of their marks, row by row of the batch.
            attention_mask: [batch, past + sequence], 1 for a token, 0 for padding.
            position_ids: [batch, sequence].
            past_key_values: cache of earlier steps.
            inputs_embeds: [batch, sequence, D] in place of `input_ids`.
            labels: [batch, sequence].
            logits_to_keep: compute logits of only the last so many positions, or of those in a
                tensor, [positions]; 0 means all.
            image_sizes: [images and videos, 2], height and width in pixels; needed where an image
                has several tiles.
            num_tiles: [images and videos]; without it every tile is an image.
            is_video: [images and videos], bool; without it there is no video.
            mm_encoder_outputs: what `get_image_features` returned, in place of `pixel_values`;
                `generate` encodes the images once and hands them over this way.
            **kwargs: passed on to the language model and the loss.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_sizes=image_sizes,
            num_tiles=num_tiles,
            is_video=is_video,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        kept: slice | Tensor = (
            slice(-logits_to_keep, None)  # -0 keeps every position
            if isinstance(logits_to_keep, int)
            else logits_to_keep
        )
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text.vocab_size, **kwargs
            )
        return LacoOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["LacoForConditionalGeneration", "LacoModel", "LacoOutput", "LacoPreTrainedModel"]
