"""`c_abstractor`: Honeybee's locality-enhanced projector (arXiv 2312.06742).

Upstream: khanrc/honeybee honeybee/projectors/projectors.py, `CAbstractor`, with the settings of
configs/model_config/c-abs.yaml: three blocks on either side of the pooling, learned positions, two
linear layers at the end. Blocks are those of `timm.models.regnet.RegStage` with depthwise 3 x 3
convolutions (its `group_size` 1), SiLU and LayerNorm. Inner width and output width are C here, and
the adaptive pooling to 12 x 12 is r x r average pooling.
"""

from __future__ import annotations

from torch import Tensor, nn

from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.mergers.base import Merger, last_linear
from laco_deploy.model.mergers.conv import GridConv, depthwise
from laco_deploy.model.mergers.grid import space_to_channel, window_mean
from laco_deploy.model.mergers.init import PositionEmbedding
from laco_deploy.operations import C_ABSTRACTOR_DEPTH as DEPTH


class CAbstractorMerger(Merger):
    """Positions, residual convolution blocks, average pooling, as many blocks again, and an MLP."""

    def __init__(self, spec: MergerSpec, width: int, grid: tuple[int, int]) -> None:
        super().__init__(spec, width, grid)
        height, columns = self.fitted_grid
        self.positions = PositionEmbedding(height * columns, width)
        self.before = nn.Sequential(*(RegBlock(width, self.fitted_grid) for _ in range(DEPTH)))
        self.after = nn.Sequential(*(RegBlock(width, self.merged_grid) for _ in range(DEPTH)))
        self.linear_1 = nn.Linear(width, width)
        self.act = nn.SiLU()
        self.linear_2 = last_linear(spec, width, width)

    def branch(self, tokens: Tensor, stacked: Tensor) -> Tensor:
        """Convolve, pool, convolve, read out."""
        features = self.before(self.positions(tokens))  # [B, N, C]
        windows = space_to_channel(features, self.fitted_grid, self.ratio)
        features = self.after(window_mean(windows, self.ratio))  # [B, N', C]
        return self.linear_2(self.act(self.linear_1(features)))


class RegBlock(nn.Module):
    """The residual block of RegNet (arXiv 2003.13678) on tokens, [B, H * W, C] -> [B, H * W, C].

    1 x 1 convolutions are linear layers in this layout.
    """

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.norm_1 = nn.LayerNorm(width)
        self.conv = GridConv(depthwise(width, bias=False), grid)
        self.norm_2 = nn.LayerNorm(width)
        self.gate = ChannelGate(width)
        self.linear_2 = nn.Linear(width, width, bias=False)
        self.norm_3 = nn.LayerNorm(width)
        self.act = nn.SiLU()

    def forward(self, tokens: Tensor) -> Tensor:
        """Convolve beside the identity."""
        hidden = self.act(self.norm_1(self.linear_1(tokens)))
        hidden = self.gate(self.act(self.norm_2(self.conv(hidden))))
        return self.act(self.norm_3(self.linear_2(hidden)) + tokens)


class ChannelGate(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507): scale channels by what the whole grid shows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        reduced = max(1, round(width / 4))
        self.linear_1 = nn.Linear(width, reduced)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(reduced, width)
        self.sigmoid = nn.Sigmoid()

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        mean = tokens.mean(dim=1, keepdim=True)  # [B, 1, C]
        return tokens * self.sigmoid(self.linear_2(self.act(self.linear_1(mean))))


__all__ = ["CAbstractorMerger", "ChannelGate", "RegBlock"]
