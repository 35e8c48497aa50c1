"""Operations and weights of a model's parts by formula, from plain numbers: no PyTorch in sight.

An operation is one floating-point multiplication or addition of a matrix product or convolution,
so a multiply-add counts as 2. Norms, activations, biases and sums are left out: they cost time, but
less than one in a hundred operations. Attention counts every pair of tokens, also in the language
model, where half of them are masked. Weights are those of the same products.

Symbols: N tokens, N' merged tokens, C encoder width, F width inside the feed-forward network, r
merge ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from laco_runtimes.errors import ArgumentError

T = TypeVar("T")

FFN_MATRICES: Mapping[str, int] = {
    "aimv2_vision_model": 3,  # gated
    "internvl_vision": 2,
    "qwen2": 3,  # gated
    "siglip_vision_model": 2,
}
"""m: matrices between C and F in a feed-forward network, by `model_type`."""

PREFIX_TOKENS: Mapping[str, int] = {
    "aimv2_vision_model": 0,
    "internvl_vision": 1,  # CLS
    "siglip_vision_model": 0,
}
"""Tokens of an encoder before those of the patches, by `model_type`."""

C_ABSTRACTOR_DEPTH = 3
"""Convolution blocks of a `c_abstractor` before its pooling, and as many behind it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Shape of a transformer block with full attention of C wide heads in sum."""

    model_type: str
    width: int
    """C."""
    inner: int
    """F."""

    @property
    def weights(self) -> int:
        """4 C^2 + m C F."""
        matrices = _known(FFN_MATRICES, self.model_type)
        return 4 * self.width * self.width + matrices * self.width * self.inner

    def operations(self, tokens: int) -> int:
        """2N (4 C^2 + m C F) for its matrices and 4 N^2 C for attention."""
        return 2 * tokens * self.weights + 4 * tokens * tokens * self.width


@dataclass(frozen=True, slots=True)
class Decoder:
    """Shape of a language model whose heads share keys and values."""

    model_type: str
    layers: int
    width: int
    """D."""
    inner: int
    """F."""
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """To queries, keys and values, and back; and the feed-forward network."""
        attention = 2 * self.width * (self.queries + self.kv_heads * self.head_dim)
        return attention + _known(FFN_MATRICES, self.model_type) * self.width * self.inner

    def operations(self, tokens: int, cached: int = 0) -> int:
        """All layers over so many new tokens behind those in the KV cache, without the head."""
        pairs = tokens * (cached + tokens)
        return self.layers * (2 * tokens * self.layer_weights + 4 * pairs * self.queries)


def merger_operations(kind: str, width: int, ratio: int, merged: int) -> int:
    """Operations of a merger that leaves N' tokens. The shortcut is free: it has no product.

    Raises:
        ArgumentError: an unknown kind.
    """
    return _known(_MERGERS, kind).operations(width, ratio, merged)


def merger_weights(kind: str, width: int, ratio: int) -> int:
    """Weights of a merger's products.

    Raises:
        ArgumentError: an unknown kind.
    """
    return _known(_MERGERS, kind).weights(width, ratio)


def _known(table: Mapping[str, T], name: str) -> T:
    if name not in table:
        raise ArgumentError(
            f"no formula for {name!r}. There are some for: {', '.join(sorted(table))}."
        )
    return table[name]


def _ldpv2(width: int, ratio: int, merged: int) -> int:
    """C -> C -> C on every patch, a 3 x 3 depthwise convolution on every window."""
    return 4 * merged * ratio * ratio * width * width + 18 * merged * width


def _token_packer(width: int, ratio: int, merged: int) -> int:
    """Per window 2 matrices for the query, 1 behind attention and 2 for the MLP; per patch 2 each
    for keys and values and 1 each inside attention, which weighs r^2 patches for one query."""
    patches = merged * ratio * ratio
    return 2 * (5 * merged + 6 * patches) * width * width + 4 * patches * width


def _patch_merger_weights(width: int, ratio: int) -> int:
    """r^2 C -> r^2 C -> C."""
    window = ratio * ratio * width
    return window * window + window * width


def _c_abstractor(width: int, ratio: int, merged: int) -> int:
    """Convolution blocks before and behind the pooling, then C -> C -> C on every window."""
    reduced = max(1, round(width / 4))

    def block(tokens: int) -> int:  # two 1 x 1 convolutions, one 3 x 3 depthwise, the gate
        return 4 * tokens * width * width + 18 * tokens * width + 4 * width * reduced

    blocks = C_ABSTRACTOR_DEPTH * (block(merged * ratio * ratio) + block(merged))
    return blocks + 4 * merged * width * width


def _c_abstractor_weights(width: int, ratio: int) -> int:
    block = 2 * width * width + 9 * width + 2 * width * max(1, round(width / 4))
    return 2 * C_ABSTRACTOR_DEPTH * block + 2 * width * width


@dataclass(frozen=True, slots=True)
class _Merger:
    operations: Callable[[int, int, int], int]
    """For C, r and N'."""
    weights: Callable[[int, int], int]
    """For C and r."""


def _per_window(weights: Callable[[int, int], int]) -> _Merger:
    """A merger that is nothing but dense layers on every window."""
    return _Merger(lambda width, ratio, merged: 2 * merged * weights(width, ratio), weights)


# r^2 C -> C -> C.
_MLP_OF_WINDOW = _per_window(lambda width, ratio: (ratio * ratio + 1) * width * width)

_MERGERS: Mapping[str, _Merger] = {
    "laco": _MLP_OF_WINDOW,
    "pixel_shuffle": _MLP_OF_WINDOW,
    "ldpv2": _Merger(_ldpv2, lambda width, ratio: 2 * width * width + 9 * width),
    "token_packer": _Merger(_token_packer, lambda width, ratio: 11 * width * width),
    "avg_pool": _per_window(lambda width, ratio: 0),
    "patch_merger": _per_window(_patch_merger_weights),
    "c_abstractor": _Merger(_c_abstractor, _c_abstractor_weights),
}

__all__ = [
    "C_ABSTRACTOR_DEPTH",
    "FFN_MATRICES",
    "PREFIX_TOKENS",
    "Block",
    "Decoder",
    "merger_operations",
    "merger_weights",
]
