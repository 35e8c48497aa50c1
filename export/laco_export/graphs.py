"""The three graphs of a bundle as thin modules, each with a forward of its own.

They hold the trained modules themselves, not copies, and are traced by `onnx_writer`. Names, types
and dimensions of inputs and outputs are those of `laco_runtimes.graphs`.

Shape legend: B batch, S new tokens, D width of the language model, d width of a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from laco_export.flavours import FLAVOURS, MASKED, Attending
from laco_export.protocols import DecoderLayer, LanguageBody


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


class LayerGraph(nn.Module):
    """One layer of a decoder: all that it hangs on is here or given, so that it is traced once.

    Args:
        layer: whose modules these are, under the names that they have there.
        form: shared by all layers, hence in a tuple: torch would name its buffers after a layer.
    """

    def __init__(self, layer: DecoderLayer, form: Attending) -> None:
        super().__init__()
        attention = layer.self_attn
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": attention.q_proj,
                "k_proj": attention.k_proj,
                "v_proj": attention.v_proj,
                "o_proj": attention.o_proj,
            }
        )
        self.mlp = layer.mlp
        self.input_layernorm = layer.input_layernorm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.form = (form,)

    def forward(
        self, shared: Any, hidden: Tensor, change: Tensor | None, key: Tensor, value: Tensor
    ) -> tuple[Tensor, ...]:
        """One layer over S new tokens.

        Args:
            shared: tensors from `Attending.prepare`.
            hidden: [B, S, D].
            change: [B, S, D], what the layer before adds to it; None in the first.
            key: the cache of this layer.
            value: the same.

        Returns:
            `hidden` and what this layer adds to it, then its cache with the new tokens.
        """
        (form,), attention = self.form, self.self_attn
        normed, hidden = form.normalise(hidden, change, self.input_layernorm)
        context, key, value = form.attend(
            shared,
            attention["q_proj"](normed),
            attention["k_proj"](normed),
            attention["v_proj"](normed),
            (key, value),
        )
        normed, hidden = form.normalise(
            hidden, attention["o_proj"](context), self.post_attention_layernorm
        )
        return hidden, self.mlp(normed), key, value


class DecoderGraph(nn.Module):
    """A Qwen2 decoder with its head, written for engines that fuse attention.

    Upstream: transformers/models/qwen2/modeling_qwen2.py. Differences are of form only: logits of
    the last position alone, and attention, positions and norms as the flavour has them.

    Args:
        body: the Qwen2 model without its head.
        head: from width to vocabulary.
        head_dim: d.
        rope_theta: base of the rotary frequencies.
        flavour: a key of `FLAVOURS`.
        positions: how many positions the flavours `static` and `contrib` have tables for.
    """

    def __init__(
        self,
        body: LanguageBody,
        head: nn.Linear,
        *,
        head_dim: int,
        rope_theta: float,
        flavour: str = "stateful",
        positions: int | None = None,
    ) -> None:
        super().__init__()
        form = FLAVOURS[flavour].attending(
            head_dim=head_dim, rope_theta=rope_theta, positions=positions
        )
        self.layers = nn.ModuleList(LayerGraph(layer, form) for layer in body.layers)
        self.norm = body.norm
        self.head = head
        self.attending = form

    def forward(self, inputs_embeds: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """One pass over S new tokens.

        Args:
            inputs_embeds: [B, S, D].
            *others: the other inputs of `laco_runtimes.graphs.decoder` in their order: what the
                flavour knows positions and masks by, then key and value of every layer.

        Returns:
            Logits [B, 1, V] of the last position, then key and value of every layer.
        """
        form = self.attending
        inputs, past = others[: form.inputs], others[form.inputs :]
        shared = form.prepare(inputs_embeds, *inputs)
        hidden: Tensor = inputs_embeds
        change: Tensor | None = None  # what the last layer adds to it
        present: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            hidden, change, *cache = layer(
                shared, hidden, change, past[2 * index], past[2 * index + 1]
            )
            present += cache
        # Only the last position, [B, 1, D]: no vocabulary for the others.
        last = change if change is None else change[:, -1:]
        normed, _ = form.normalise(hidden[:, -1:], last, self.norm)
        return (self.head(normed), *present)


__all__ = ["MASKED", "DecoderGraph", "EmbedGraph", "VisionGraph"]
