"""`patch_merger`: Qwen2-VL's merger.

Upstream: transformers/models/qwen2_vl/modeling_qwen2_vl.py, `PatchMerger`, with C as its output
width.
"""

from __future__ import annotations

from torch import Tensor, nn

from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.mergers.base import Merger, last_linear


class PatchMerger(Merger):
    """LayerNorm of every patch, space-to-channel, and an MLP as wide inside as a window."""

    def __init__(self, spec: MergerSpec, width: int, grid: tuple[int, int]) -> None:
        super().__init__(spec, width, grid)
        stacked = spec.ratio * spec.ratio * width
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear_1 = nn.Linear(stacked, stacked)
        self.act = nn.GELU()
        self.linear_2 = last_linear(spec, stacked, width)

    def branch(self, tokens: Tensor, stacked: Tensor) -> Tensor:
        """The MLP over each window's normalised patches."""
        patches = stacked.reshape(stacked.shape[0], -1, self.width)  # [B, N, C], window by window
        normal = self.norm(patches).reshape(stacked.shape)  # [B, N', r * r * C]
        return self.linear_2(self.act(self.linear_1(normal)))


__all__ = ["PatchMerger"]
