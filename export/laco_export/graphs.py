"""The three graphs of a bundle as thin modules, each with a forward of its own.

They hold the trained modules themselves, not copies, and are traced by `onnx_writer`. Names, types
and dimensions of inputs and outputs are those of `laco_runtimes.graphs`.

Shape legend: B batch, S new tokens, P cached tokens, T = P + S, D width of the language model,
H query heads, K key/value heads, d width of a head, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laco_export.protocols import LanguageBody, RmsNorm

MASKED = -1e9
"""Added to the score of a masked position. Not -inf: a row with nothing to attend to (padding)
would be NaN, and NaN times a weight of zero is NaN in every later row."""


class VisionGraph(nn.Module):
    """Pixels to visual tokens, [tiles, 3, S, S] -> [tiles, N', D]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The encoder's `get_image_features`."""
        return self.encoder.get_image_features(pixel_values)  # type: ignore[operator, no-any-return]


class EmbedGraph(nn.Module):
    """Token ids to embeddings, [B, S] -> [B, S, D]."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, input_ids: Tensor) -> Tensor:
        """One row of the table per token."""
        return self.embedding(input_ids)  # type: ignore[no-any-return]


class DecoderGraph(nn.Module):
    """A Qwen2 decoder with its head, written for engines that fuse attention.

    Upstream: transformers/models/qwen2/modeling_qwen2.py. Differences are of form only: one
    additive mask for all layers, ONNX's `RotaryEmbedding` and grouped-query `Attention` with the
    cache as its past and present, and logits of the last position alone.

    Args:
        body: the Qwen2 model without its head.
        head: from width to vocabulary.
        head_dim: d.
        rope_theta: base of the rotary frequencies.
    """

    inverse_frequencies: Tensor

    def __init__(
        self, body: LanguageBody, head: nn.Linear, *, head_dim: int, rope_theta: float
    ) -> None:
        super().__init__()
        self.layers = body.layers
        self.norm = body.norm
        self.head = head
        self.head_dim = head_dim
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inverse_frequencies", 1.0 / rope_theta**steps)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """One pass over S new tokens.

        Args:
            inputs_embeds: [B, S, D].
            attention_mask: [B, T] int64, 1 for a cached or new token, 0 for padding.
            position_ids: [B, S] int64.
            *past: key and value of every layer, [B, K, P, d] each, layer by layer.

        Returns:
            Logits [B, 1, V] of the last position, then the longer cache, [B, K, T, d] each.
        """
        hidden = inputs_embeds
        mask = self._mask(hidden.shape[1], attention_mask)
        angles = position_ids.unsqueeze(-1).float() * self.inverse_frequencies  # [B, S, d / 2]
        cos, sin = angles.cos(), angles.sin()
        present: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            attention, normed = layer.self_attn, _rms_norm(hidden, layer.input_layernorm)
            query = torch.onnx.ops.rotary_embedding(self._heads(attention.q_proj(normed)), cos, sin)
            key = torch.onnx.ops.rotary_embedding(self._heads(attention.k_proj(normed)), cos, sin)
            context, key, value, _ = torch.onnx.ops.attention(
                query,  # [B, H, S, d]
                key,
                self._heads(attention.v_proj(normed)),
                attn_mask=mask,
                past_key=past[2 * index],
                past_value=past[2 * index + 1],
            )
            present += [key, value]
            hidden = hidden + attention.o_proj(context.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(_rms_norm(hidden, layer.post_attention_layernorm))
        last = _rms_norm(hidden[:, -1:], self.norm)  # [B, 1, D]: no vocabulary for the others
        return (self.head(last), *present)

    def _heads(self, tensor: Tensor) -> Tensor:
        """[B, S, heads * d] -> [B, heads, S, d]."""
        heads: Tensor = tensor.unflatten(-1, (-1, self.head_dim))
        return heads.transpose(1, 2)

    def _mask(self, new: int, attention_mask: Tensor) -> Tensor:
        """What is added to every score, [B, 1, S, T]: 0 where attention is allowed.

        Additive and made once: OpenVINO takes a slow path for a boolean mask.
        """
        total = attention_mask.shape[1]
        keys = torch.arange(total, device=attention_mask.device)
        queries = torch.arange(new, device=attention_mask.device) + (total - new)
        allowed = (keys <= queries[:, None]) & (attention_mask[:, None, :] > 0)  # [B, S, T]
        mask: Tensor = torch.where(allowed, 0.0, MASKED)
        return mask.unsqueeze(1)


def _rms_norm(hidden: Tensor, norm: RmsNorm) -> Tensor:
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


__all__ = ["MASKED", "DecoderGraph", "EmbedGraph", "VisionGraph"]
