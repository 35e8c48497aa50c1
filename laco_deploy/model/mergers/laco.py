"""`laco` and `pixel_shuffle`: one branch, with and without the shortcut.

LaCo: arXiv 2507.02279, section 3.3, equations 3 to 5; where the paper is silent the choices of
docs/model.md hold. Pixel shuffle: `mlp1` of InternVL,
OpenGVLab/InternVL internvl_chat/internvl/model/internvl_chat/modeling_internvl_chat.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.mergers.base import Merger, last_linear


class LacoMerger(Merger):
    """Space-to-channel, LayerNorm and a two-layer MLP; as `laco` plus the mean of the window."""

    def __init__(self, spec: MergerSpec, width: int, grid: tuple[int, int]) -> None:
        super().__init__(spec, width, grid)
        stacked = spec.ratio * spec.ratio * width
        self.norm = nn.LayerNorm(stacked) if spec.norm == "layer_norm" else nn.Identity()
        self.linear_1 = nn.Linear(stacked, width)
        self.act = nn.GELU()
        self.linear_2 = last_linear(spec, width, width)

    def branch(self, tokens: Tensor, stacked: Tensor) -> Tensor:
        """The MLP over each window's stacked channels."""
        return self.linear_2(self.act(self.linear_1(self.norm(stacked))))


__all__ = ["LacoMerger"]
