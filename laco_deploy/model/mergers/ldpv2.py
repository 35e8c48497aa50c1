"""`ldpv2`: the Lightweight Downsample Projector of MobileVLM V2 (arXiv 2402.03766).

Upstream: Meituan-AutoML/MobileVLM mobilevlm/model/vision_projector.py, `LDPNetV2Projector`. Its
adaptive pooling to 12 x 12 is r x r average pooling here.
"""

from __future__ import annotations

from torch import Tensor, nn

from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.mergers.base import Merger, last_linear
from laco_deploy.model.mergers.conv import GridConv, depthwise
from laco_deploy.model.mergers.grid import window_mean
from laco_deploy.model.mergers.init import PegConv2d


class Ldpv2Merger(Merger):
    """A two-layer MLP on every patch, average pooling, and a depthwise convolution around which the
    pooled tokens pass (a positional encoding generator, arXiv 2102.10882)."""

    def __init__(self, spec: MergerSpec, width: int, grid: tuple[int, int]) -> None:
        super().__init__(spec, width, grid)
        self.linear_1 = nn.Linear(width, width)
        self.act = nn.GELU()
        self.linear_2 = last_linear(spec, width, width)
        self.peg = GridConv(depthwise(width, bias=True, kind=PegConv2d), self.merged_grid)

    def branch(self, tokens: Tensor, stacked: Tensor) -> Tensor:
        """The MLP on all N patches, then pooling, then positions."""
        patches = stacked.reshape(stacked.shape[0], -1, self.width)  # [B, N, C], window by window
        features = self.linear_2(self.act(self.linear_1(patches)))
        pooled = window_mean(features.reshape(stacked.shape), self.ratio)  # [B, N', C]
        return self.peg(pooled) + pooled


__all__ = ["Ldpv2Merger"]
