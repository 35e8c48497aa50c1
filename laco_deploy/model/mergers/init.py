"""Layers that start at values of their own, also inside a model that transformers initialises.

transformers visits every module of a fresh model and draws linear layers and convolutions from
N(0, initializer_range). A layer marked `OwnInit` is asked for its own values in place of that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class OwnInit:
    """Marks a leaf module whose `reset_parameters` alone says how it starts.

    It must write through the functions of `nn.init`: transformers guards loaded weights in there.
    """

    def reset_parameters(self) -> None:
        """Set every parameter of the module to a starting value."""
        raise NotImplementedError


class ZeroInitLinear(OwnInit, nn.Linear):
    """A linear layer that starts at zero: the last of a branch beside a shortcut."""

    def reset_parameters(self) -> None:
        """Zero weight and bias."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TruncNormalLinear(OwnInit, nn.Linear):
    """A linear layer that starts at a truncated N(0, 0.02), whatever the model around it does."""

    def reset_parameters(self) -> None:
        """Draw the weight, zero the bias."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class AttentionInLinear(OwnInit, nn.Linear):
    """The query, key or value layer of `nn.MultiheadAttention`, started as it starts them.

    That module draws one [3C, C] matrix of all three by Xavier's rule, which is narrower than the
    rule applied to each.
    """

    def reset_parameters(self) -> None:
        """Draw the weight, zero the bias."""
        bound = math.sqrt(6 / (self.in_features + 3 * self.out_features))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)


class PegConv2d(OwnInit, nn.Conv2d):
    """A convolution that starts as torch starts it, with a bias of zero.

    A depthwise kernel has nine inputs; the N(0, 0.02) of transformers is meant for wide layers.
    """

    def reset_parameters(self) -> None:
        """Draw the weight, zero the bias."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PositionEmbedding(OwnInit, nn.Module):
    """One learned vector per position, added to the tokens; starts at a truncated N(0, 0.02)."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(positions, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors."""
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return tokens + self.weight


__all__ = [
    "AttentionInLinear",
    "OwnInit",
    "PegConv2d",
    "PositionEmbedding",
    "TruncNormalLinear",
    "ZeroInitLinear",
]
