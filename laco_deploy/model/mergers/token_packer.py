"""`token_packer`: each window's patches are injected into one coarse query (arXiv 2407.02392).

Upstream: CircleRadon/TokenPacker llava/model/multimodal_projector/builder.py, `TokenPacker`, with
keys and values from the same layer as the query (it takes four layers of CLIP, which an encoder has
not seen after block k) and C as its output width.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.mergers.base import Merger, last_linear
from laco_deploy.model.mergers.init import AttentionInLinear, TruncNormalLinear


class TokenPackerMerger(Merger):
    """Cross-attention of one query, the bilinearly reduced window, to its r * r patches."""

    def __init__(self, spec: MergerSpec, width: int, grid: tuple[int, int]) -> None:
        super().__init__(spec, width, grid)
        self.query = nn.Sequential(
            TruncNormalLinear(width, width, bias=False), nn.LayerNorm(width, eps=1e-6)
        )
        self.key = _projection(width)
        self.value = _projection(width)
        self.attention = WindowAttention(width)
        self.linear_1 = TruncNormalLinear(width, width)
        self.act = nn.GELU()
        self.linear_2 = last_linear(spec, width, width, TruncNormalLinear)

    def branch(self, tokens: Tensor, stacked: Tensor) -> Tensor:
        """Attention inside each window, then a two-layer MLP."""
        patches = stacked.reshape(stacked.shape[0], -1, self.width)  # [B, N, C], window by window
        query = self.query(downscaled(stacked, self.ratio))  # [B, N', C]
        packed = self.attention(query, self.key(patches), self.value(patches))  # [B, N', C]
        return self.linear_2(self.act(self.linear_1(packed)))


class WindowAttention(nn.Module):
    """`nn.MultiheadAttention` of one query per window to the patches of that window alone.

    8 heads as published; fewer where C is not a multiple of 8.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(8, width)
        self.query = AttentionInLinear(width, width)
        self.key = AttentionInLinear(width, width)
        self.value = AttentionInLinear(width, width)
        self.out = TruncNormalLinear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend: query [B, N', C], key and value [B, N, C] window by window -> [B, N', C]."""
        windows, width = query.shape[1], query.shape[2]

        def split(tokens: Tensor) -> Tensor:  # [B * N', heads, tokens of a window, C / heads]
            per_window = tokens.shape[1] // windows
            return tokens.reshape(-1, per_window, self.heads, width // self.heads).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            split(self.query(query)), split(self.key(key)), split(self.value(value))
        )  # [B * N', heads, 1, C / heads]
        return self.out(mixed.reshape(-1, windows, width))


def downscaled(stacked: Tensor, ratio: int) -> Tensor:
    """Bilinear reduction by r without antialiasing, as `functional.interpolate` does it.

    That is the mean of the window for r = 2, its middle patch for r = 3 and the mean of its four
    middle patches for r = 4.

    Args:
        stacked: windows, [B, N', r * r * C].
        ratio: r.

    Returns:
        [B, N', C].
    """
    batch, merged, wide = stacked.shape
    width = wide // (ratio * ratio)
    first, end = (ratio - 1) // 2, ratio // 2 + 1  # of the rows and columns that count
    windows = stacked.reshape(-1, ratio, ratio, width)  # [B * N', r, r, C]
    middle = windows[:, first:end, first:end].flatten(1, 2)  # [B * N', 1 or 4, C]
    return middle.mean(dim=1).reshape(batch, merged, width)


def _projection(width: int) -> nn.Sequential:
    return nn.Sequential(
        TruncNormalLinear(width, width),
        nn.GELU(),
        TruncNormalLinear(width, width),
        nn.LayerNorm(width, eps=1e-6),
    )


__all__ = ["TokenPackerMerger", "WindowAttention", "downscaled"]
