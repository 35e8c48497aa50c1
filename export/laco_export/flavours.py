"""The forms one decoder is written in, because engines fuse different forms of attention.

The layers, their weights and their order are `laco_export.graphs.DecoderGraph`'s. A form says how
positions and masks reach a layer, how it attends over its KV cache and how it normalises.

Shape legend: B batch, S new tokens, P cached tokens, T = P + S, C capacity of a cache of one size,
D width of the language model, H query heads, K key/value heads, d width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laco_export.paths import decoder_stem
from laco_export.protocols import RmsNorm
from laco_runtimes import graphs
from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import DecoderForm, GraphSpec
from laco_runtimes.manifest import LanguageFacts

MASKED = -1e9
"""Added to the score of a masked position. Not -inf: a row with nothing to attend to (padding)
would be NaN, and NaN times a weight of zero is NaN in every later row."""

_INT32 = 6
"""`TensorProto.INT32`."""


class Attending(nn.Module, ABC):
    """How the layers of a decoder attend and normalise in one flavour.

    Args:
        head_dim: d.
        rope_theta: base of the rotary frequencies.
        positions: how many positions tables of angles hold.
    """

    inputs: ClassVar[int]
    """How many inputs stand between `inputs_embeds` and the cache."""

    inverse_frequencies: Tensor

    def __init__(self, *, head_dim: int, rope_theta: float, positions: int | None) -> None:
        super().__init__()
        self.head_dim = head_dim
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inverse_frequencies", 1.0 / rope_theta**steps)

    @abstractmethod
    def prepare(self, hidden: Tensor, *inputs: Tensor) -> Any:
        """What all layers share, made once: tensors only, by which a layer knows all it needs."""

    @abstractmethod
    def attend(
        self, shared: Any, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention over the cache and the new tokens.

        Args:
            shared: from `prepare`.
            query: [B, S, H * d], not yet rotated.
            key: [B, S, K * d], not yet rotated.
            value: [B, S, K * d].
            past: cached keys and values.

        Returns:
            Context [B, S, H * d], and the cache with the new keys and values.
        """

    def normalise(
        self, hidden: Tensor, change: Tensor | None, norm: RmsNorm
    ) -> tuple[Tensor, Tensor]:
        """(norm(hidden + change), hidden + change)."""
        if change is not None:
            hidden = hidden + change
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon), hidden

    def heads(self, tensor: Tensor) -> Tensor:
        """[B, S, heads * d] -> [B, heads, S, d]."""
        heads: Tensor = tensor.unflatten(-1, (-1, self.head_dim))
        return heads.transpose(1, 2)

    def angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [B, S, d / 2] each."""
        angles = position_ids.unsqueeze(-1).float() * self.inverse_frequencies
        return angles.cos(), angles.sin()


class _Tables(Attending):
    """Angles of all positions in tables, [positions, d / 2]."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, *, head_dim: int, rope_theta: float, positions: int | None) -> None:
        super().__init__(head_dim=head_dim, rope_theta=rope_theta, positions=positions)
        if positions is None:
            raise ExportError(
                "this decoder flavour keeps its angles in a table, and how many positions that has "
                "is not given. Give `positions`."
            )
        cosines, sines = self.angles(torch.arange(positions))
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)


def _additive_mask(new: int, attention_mask: Tensor) -> Tensor:
    """What is added to every score, [B, 1, S, T]: 0 where attention is allowed.

    Additive and made once: OpenVINO takes a slow path for a boolean mask.
    """
    total = attention_mask.shape[1]
    keys = torch.arange(total, device=attention_mask.device)
    queries = torch.arange(new, device=attention_mask.device) + (total - new)
    allowed = (keys <= queries[:, None]) & (attention_mask[:, None, :] > 0)  # [B, S, T]
    return torch.where(allowed, 0.0, MASKED).unsqueeze(1)


class Stateful(Attending):
    """ONNX `Attention` with the cache as its past and present, after `RotaryEmbedding`."""

    inputs = 2

    def prepare(self, hidden: Tensor, *inputs: Tensor) -> Any:
        """From `attention_mask` [B, T] and `position_ids` [B, S]."""
        attention_mask, position_ids = inputs
        return _additive_mask(hidden.shape[1], attention_mask), self.angles(position_ids)

    def attend(
        self, shared: Any, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache, [B, K, P, d] each, comes back as [B, K, T, d]."""
        mask, angles = shared
        context, keys, values, _ = torch.onnx.ops.attention(
            torch.onnx.ops.rotary_embedding(self.heads(query), *angles),  # [B, H, S, d]
            torch.onnx.ops.rotary_embedding(self.heads(key), *angles),
            self.heads(value),
            attn_mask=mask,
            past_key=past[0],
            past_value=past[1],
        )
        return context.transpose(1, 2).flatten(2), keys, values


class Static(_Tables):
    """`TensorScatter` into a cache of one size, then `Attention` over all of it under a mask.

    Never with `nonpad_kv_seqlen`, which the parser of TensorRT drops without an error. The engine
    writes in place where a cache input and its output are bound to one buffer.
    """

    inputs = 3

    def prepare(self, hidden: Tensor, *inputs: Tensor) -> Any:
        """The tables, then `position_ids` [1, S], `write_indices` [1] and `attention_mask`
        [1, 1, S, C]."""
        return self.cosines, self.sines, *inputs

    def attend(
        self, shared: Any, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache is [1, K, C, d] each before and after."""
        cosines, sines, position_ids, write_indices, mask = shared
        tables = cosines, sines, position_ids
        key = torch.onnx.ops.rotary_embedding(self.heads(key), *tables)
        keys, values = (
            torch.onnx.ops.symbolic(
                "::TensorScatter",
                (cache, new, write_indices),
                {"axis": -2, "mode": "linear"},
                dtype=cache.dtype,
                shape=cache.shape,
                version=24,
            )
            for cache, new in zip(past, (key, self.heads(value)), strict=True)
        )
        query = torch.onnx.ops.rotary_embedding(self.heads(query), *tables)
        context, *_ = torch.onnx.ops.attention(query, keys, values, attn_mask=mask)
        return context.transpose(1, 2).flatten(2), keys, values


class Contrib(_Tables):
    """`GroupQueryAttention` and `SkipSimplifiedLayerNormalization` of ONNX Runtime.

    The operator rotates queries and keys itself, by how many tokens the row holds: padding may
    stand only behind a row's tokens. Reference: ContribOperators.md of onnxruntime.
    """

    inputs = 1

    def prepare(self, hidden: Tensor, *inputs: Tensor) -> Any:
        """The tables, then, from `attention_mask` [B, T], each row's last position [B] and T; both
        int32."""
        (attention_mask,) = inputs
        last = attention_mask.sum(1, keepdim=True) - 1  # [B, 1]: as onnxruntime-genai has it
        length = torch.onnx.ops.symbolic(
            "::Shape", (attention_mask,), {"start": 1, "end": 2}, dtype=torch.int64, shape=(1,)
        )
        return self.cosines, self.sines, last.to(torch.int32), length.to(torch.int32)

    def attend(
        self, shared: Any, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache, [B, K, P, d] each, comes back as [B, K, T, d], or in the buffer it was in."""
        cosines, sines, last, length = shared
        batch, heads, cached, width = past[0].shape
        grown = (batch, heads, cached + query.shape[1], width)
        context, keys, values = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (query, key, value, *past, last, length, cosines, sines),
            {
                "num_heads": query.shape[2] // width,
                "kv_num_heads": heads,
                "do_rotary": 1,
                "rotary_interleaved": 0,
                "scale": width**-0.5,
            },
            dtypes=(query.dtype, key.dtype, value.dtype),
            shapes=(query.shape, grown, grown),
            version=1,
        )
        return context, keys, values

    def normalise(
        self, hidden: Tensor, change: Tensor | None, norm: RmsNorm
    ) -> tuple[Tensor, Tensor]:
        """Sum and norm in one operator, where there is a sum."""
        if change is None:
            return super().normalise(hidden, None, norm)
        normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::SkipSimplifiedLayerNormalization",
            (hidden, change, norm.weight),
            {"epsilon": norm.variance_epsilon},
            dtypes=(hidden.dtype,) * 4,
            shapes=(hidden.shape, (1,), (1,), hidden.shape),
            version=1,
        )
        return normed, total


class Concat(Attending):
    """Primitive operators of opset 18, with a cache that grows by `Concat`."""

    inputs = 2

    def prepare(self, hidden: Tensor, *inputs: Tensor) -> Any:
        """From `attention_mask` [B, T] and `position_ids` [B, S]."""
        attention_mask, position_ids = inputs
        mask = _additive_mask(hidden.shape[1], attention_mask)  # [B, 1, S, T]
        cosines, sines = self.angles(position_ids)
        return mask, cosines.unsqueeze(1), sines.unsqueeze(1)  # [B, 1, S, d / 2]

    def attend(
        self, shared: Any, query: Tensor, key: Tensor, value: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache, [B, K, P, d] each, comes back as [B, K, T, d]."""
        mask, *angles = shared
        keys = torch.cat([past[0], _rotate(self.heads(key), *angles)], dim=2)
        values = torch.cat([past[1], self.heads(value)], dim=2)
        # Before the product: engines fuse this order, and float16 has room for it.
        query = _rotate(self.heads(query), *angles) * self.head_dim**-0.5  # [B, H, S, d]
        repeats = query.shape[1] // keys.shape[1]
        scores = query @ _repeat(keys, repeats).transpose(2, 3) + mask  # [B, H, S, T]
        context = scores.softmax(-1) @ _repeat(values, repeats)
        return context.transpose(1, 2).flatten(2), keys, values

    def normalise(
        self, hidden: Tensor, change: Tensor | None, norm: RmsNorm
    ) -> tuple[Tensor, Tensor]:
        """Mean of squares, root, quotient."""
        if change is not None:
            hidden = hidden + change
        mean = (hidden * hidden).mean(-1, keepdim=True)
        return hidden / (mean + norm.variance_epsilon).sqrt() * norm.weight, hidden


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Halves of each head turned against one another, [B, heads, S, d]."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


def _repeat(heads: Tensor, repeats: int) -> Tensor:
    """[B, K, T, d] -> [B, K * repeats, T, d], each head beside its copies."""
    if repeats == 1:
        return heads
    batch, count, tokens, width = heads.shape
    wide = heads.unsqueeze(2).expand(batch, count, repeats, tokens, width)
    return wide.reshape(batch, count * repeats, tokens, width)


_SHARED_OPS = frozenset(
    {
        *("MatMul", "Add", "Mul", "Sub", "Div", "Sigmoid", "Reshape", "Transpose", "Cast", "Slice"),
        *("Unsqueeze", "Squeeze", "Shape", "Gather", "Concat", "Gemm"),
    }
)
_MASK_OPS = frozenset({"Range", "LessOrEqual", "Greater", "And", "Where", "Expand"})
_ANGLE_OPS = frozenset({"Cos", "Sin"})


@dataclass(frozen=True, slots=True)
class Flavour:
    """One row of the table of flavours."""

    name: graphs.FlavourName
    opset: int
    """Of ai.onnx."""
    attending: Callable[..., Attending]
    """Makes the form of its layers."""
    operators: frozenset[str]
    """All that its graph may consist of: names in ai.onnx, `domain::name` elsewhere."""

    def spec(self, facts: LanguageFacts, form: DecoderForm | None = None) -> GraphSpec:
        """Inputs and outputs of the graph.

        Raises:
            ConfigError: a form of `static` without a capacity.
        """
        return graphs.decoder(facts, form or DecoderForm(self.name))

    def positions(self, facts: LanguageFacts, form: DecoderForm) -> int:
        """How many positions a table of angles needs."""
        return form.capacity or facts.max_positions

    @property
    def stem(self) -> str:
        """Name of its file without the suffix; `stateful` is the source of all."""
        return decoder_stem(self.name)


FLAVOURS: dict[str, Flavour] = {
    "stateful": Flavour(
        "stateful",
        23,
        Stateful,
        _SHARED_OPS | _MASK_OPS | _ANGLE_OPS | {"Attention", "RotaryEmbedding", "RMSNormalization"},
    ),
    "static": Flavour(
        "static",
        24,
        Static,
        _SHARED_OPS | {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"},
    ),
    "contrib": Flavour(
        "contrib",
        23,
        Contrib,
        _SHARED_OPS
        | {
            *("ReduceSum", "RMSNormalization"),
            "com.microsoft::GroupQueryAttention",
            "com.microsoft::SkipSimplifiedLayerNormalization",
        },
    ),
    "concat": Flavour(
        "concat",
        18,
        Concat,
        _SHARED_OPS
        | _MASK_OPS
        | _ANGLE_OPS
        | {"Softmax", "ReduceMean", "Sqrt", "Reciprocal", "Pow", "Split"},
    ),
}
"""Flavours by name. `stateful` for OpenVINO, `static` for TensorRT from 10.15 and TensorRT-RTX,
`contrib` for ONNX Runtime, `concat` for TensorRT 10.3 and other old engines."""


__all__ = ["FLAVOURS", "MASKED", "Attending", "Flavour"]
