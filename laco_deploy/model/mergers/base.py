"""What every merger shares: the fitted grid, the windows, and the shortcut beside the branch."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.mergers.grid import fit_grid, space_to_channel, window_mean
from laco_deploy.model.mergers.init import ZeroInitLinear


class Merger(nn.Module, ABC):
    """r x r neighbouring tokens become one: [B, H * W, C] -> [B, H' * W', C].

    With the shortcut on, the last linear layer of the branch starts at zero: a fresh merger is then
    exactly average pooling, and block k + 1 sees inputs of the distribution it was trained on.

    Args:
        spec: kind, ratio, shortcut and treatment of odd grids.
        width: C.
        grid: (H, W) of the tokens that come in.

    Raises:
        ConfigError: nothing is left of the grid.
    """

    def __init__(self, spec: MergerSpec, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.spec = spec
        self.width = width
        self.ratio = spec.ratio
        self.grid = grid
        self.merged_grid = spec.merged_grid(grid)
        self.fitted_grid = self.merged_grid[0] * spec.ratio, self.merged_grid[1] * spec.ratio
        """The grid of whole windows that `branch` sees."""

    @abstractmethod
    def branch(self, tokens: Tensor, stacked: Tensor) -> Tensor:
        """Merge, apart from the shortcut.

        Args:
            tokens: [B, N, C], row-major over `fitted_grid`.
            stacked: the same as windows, [B, N', r * r * C].

        Returns:
            [B, N', C].
        """

    def forward(self, tokens: Tensor) -> Tensor:
        """Merge [B, H * W, C] into [B, H' * W', C]."""
        tokens = fit_grid(tokens, self.grid, self.ratio, self.spec.odd_grid)  # [B, N, C]
        stacked = space_to_channel(tokens, self.fitted_grid, self.ratio)  # [B, N', r * r * C]
        merged = self.branch(tokens, stacked)
        if self.spec.shortcut == "window_mean":
            merged = merged + window_mean(stacked, self.ratio)
        return merged


def last_linear(
    spec: MergerSpec, inputs: int, outputs: int, alone: type[nn.Linear] = nn.Linear
) -> nn.Linear:
    """The last linear layer of a branch: zero at the start beside a shortcut, else of type `alone`.

    Without a shortcut a zero layer would let nothing through.
    """
    beside = spec.shortcut == "window_mean"
    return ZeroInitLinear(inputs, outputs) if beside else alone(inputs, outputs)


__all__ = ["Merger", "last_linear"]
