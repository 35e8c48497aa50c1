"""`LacoForConditionalGeneration`: compressed vision encoder, projector and language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import ModelOutput

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.mergers import ZeroInitLinear
from laco_deploy.model.vision import LacoVisionEncoder


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
        super()._init_weights(module)
        if isinstance(module, ZeroInitLinear):
            # nn.init, not zero_(): transformers guards loaded weights inside these functions.
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


class LacoModel(LacoPreTrainedModel):
    """Encoder, projector and language model without its head."""

    def __init__(self, config: LacoConfig) -> None:
        super().__init__(config)
        self.vision_encoder = LacoVisionEncoder(config)
        self.projector = LacoProjector(config)
        self.language_model = AutoModel.from_config(config.text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens in language model width: [tiles, 3, S, S] -> [tiles, N', D]."""
        return self.projector(self.vision_encoder(pixel_values))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Embed text, put the visual tokens in place of the image ids, run the language model.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, or a number of image ids
                that is not tiles * N'.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            if input_ids is None:
                raise ValueError("pixel_values need input_ids, which say where the images stand")
            features = self.get_image_features(pixel_values)  # [tiles, N', D]
            is_image = input_ids == self.config.image_token_id  # [batch, sequence]
            found, wanted = int(is_image.sum()), features.shape[0] * features.shape[1]
            if found != wanted:
                raise ValueError(
                    f"input_ids hold {found} image tokens, the images give {wanted}. "
                    "Build the prompt with the model's own number of tokens per tile."
                )
            inputs_embeds = inputs_embeds.masked_scatter(
                is_image.unsqueeze(-1), features.to(inputs_embeds.dtype)
            )
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


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
        """Visual tokens in language model width: [tiles, 3, S, S] -> [tiles, N', D]."""
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
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> LacoOutput:
        """Next-token logits, and the loss where `labels` (-100 = not supervised) are given.

        Args:
            input_ids: [batch, sequence]; `image_token_id` marks visual tokens.
            pixel_values: [tiles, 3, S, S], tiles in the order of their marks.
            attention_mask: [batch, past + sequence], 1 for a token, 0 for padding.
            position_ids: [batch, sequence].
            past_key_values: cache of earlier steps.
            inputs_embeds: [batch, sequence, D] in place of `input_ids`.
            labels: [batch, sequence].
            logits_to_keep: compute logits of only the last so many positions; 0 means all.
            **kwargs: passed on to the language model and the loss.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden = outputs.last_hidden_state[:, -logits_to_keep:]  # -0 keeps every position
        logits = self.lm_head(hidden)
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

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Hand the images to the first step only; later steps read them from the cache."""
        parent: Any = super()  # typed for a class that mixes it in differently
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs["pixel_values"] = pixel_values
        return inputs


__all__ = ["LacoForConditionalGeneration", "LacoModel", "LacoOutput", "LacoPreTrainedModel"]
