"""The Patch Merge Layer: r x r neighbouring patch tokens become one, inside the encoder.

Paper: arXiv 2507.02279, section 3.3, equations 3 to 5. Where the paper is silent the choices of
docs/model.md hold.

Shape legend: B images, H x W patch grid, C encoder width, r merge ratio, N = H * W tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from laco_runtimes.errors import ConfigError

if TYPE_CHECKING:
    from laco_deploy.model.config import MergerSpec


def space_to_channel(tokens: Tensor, grid: tuple[int, int], ratio: int) -> Tensor:
    """Stack each r x r window of patches along the channels, in the order (row, column, channel).

    Args:
        tokens: [B, H * W, C], row-major over the grid.
        grid: (H, W), both divisible by `ratio`.
        ratio: r.

    Returns:
        [B, (H / r) * (W / r), r * r * C], windows row-major; channel index = (i * r + j) * C + c
        for the patch in row i, column j of the window (as in InternVL's pixel shuffle v2).
    """
    batch, _, channels = tokens.shape
    height, width = grid
    # Rank 4 at most, no gather: inference engines turn this into one strided copy.
    rows = tokens.reshape(batch * (height // ratio), ratio, width // ratio, ratio * channels)
    windows = rows.transpose(1, 2)  # [B * H/r, W/r, r, r * C]
    return windows.reshape(batch, (height // ratio) * (width // ratio), ratio * ratio * channels)


def window_mean(stacked: Tensor, ratio: int) -> Tensor:
    """The parameter-free shortcut: the mean over a window, channel by channel (paper eq. 4).

    Args:
        stacked: output of `space_to_channel`, [B, N', r * r * C].
        ratio: r.

    Returns:
        [B, N', C]; equal to r x r average pooling of the patch grid.
    """
    batch, merged, wide = stacked.shape
    return stacked.reshape(batch, merged, ratio * ratio, wide // (ratio * ratio)).mean(dim=2)


class ZeroInitLinear(nn.Linear):
    """A linear layer that a fresh model starts at zero.

    A class of its own, because transformers initialises module by module and must know at the leaf.
    """


class LacoMerger(nn.Module):
    """Space-to-channel, LayerNorm, a two-layer MLP, plus the window mean (paper eq. 3 to 5).

    The last linear layer starts at zero, so a fresh merger is exactly average pooling and block
    k + 1 sees inputs of the distribution it was trained on.
    """

    def __init__(self, spec: MergerSpec, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.ratio = spec.ratio
        self.grid = grid
        stacked = spec.ratio * spec.ratio * width
        self.norm = nn.LayerNorm(stacked) if spec.norm == "layer_norm" else nn.Identity()
        self.linear_1 = nn.Linear(stacked, width)
        self.act = nn.GELU()
        self.linear_2 = ZeroInitLinear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Merge [B, H * W, C] into [B, H * W / r^2, C]."""
        stacked = space_to_channel(tokens, self.grid, self.ratio)  # [B, N', r * r * C]
        branch = self.linear_2(self.act(self.linear_1(self.norm(stacked))))  # [B, N', C]
        return branch + window_mean(stacked, self.ratio)


MERGERS: dict[str, Callable[[MergerSpec, int, tuple[int, int]], nn.Module]] = {
    "laco": LacoMerger,
}
"""Merger kinds by the name used in a configuration."""


def build_merger(spec: MergerSpec, width: int, grid: tuple[int, int]) -> nn.Module:
    """Build the merger that `spec` names for a patch grid.

    Raises:
        ConfigError: the grid does not divide by the ratio.
    """
    height, width_patches = grid
    if height % spec.ratio or width_patches % spec.ratio:
        raise ConfigError(
            f"a {height}x{width_patches} patch grid does not divide into {spec.ratio}x{spec.ratio} "
            f"windows. Choose a ratio that divides both sides."
        )
    return MERGERS[spec.kind](spec, width, grid)


__all__ = [
    "MERGERS",
    "LacoMerger",
    "ZeroInitLinear",
    "build_merger",
    "space_to_channel",
    "window_mean",
]
