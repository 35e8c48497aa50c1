"""The 3 x 3 depthwise convolution that `ldpv2` and `c_abstractor` run over a grid of tokens."""

from __future__ import annotations

from torch import Tensor, nn


class GridConv(nn.Module):
    """Each channel for itself, 3 x 3, zeros around the border: [B, H * W, C] -> [B, H * W, C].

    Args:
        conv: a convolution that keeps the size of the image.
        grid: (H, W).
    """

    def __init__(self, conv: nn.Conv2d, grid: tuple[int, int]) -> None:
        super().__init__()
        self.conv = conv
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        """Convolve tokens that are row-major over the grid."""
        batch, _, width = tokens.shape
        image = tokens.transpose(1, 2).reshape(batch, width, *self.grid)  # [B, C, H, W]
        return self.conv(image).flatten(2).transpose(1, 2)


def depthwise(width: int, *, bias: bool, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    """A 3 x 3 convolution of `width` channels that do not mix."""
    return kind(width, width, kernel_size=3, padding=1, groups=width, bias=bias)


__all__ = ["GridConv", "depthwise"]
