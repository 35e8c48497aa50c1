"""What all mergers do to the patch grid: fit it to whole windows, stack them, average them.

Every shape is known when the model is built, but for the batch, and no tensor has a rank above 4:
inference engines turn these into plain copies.

Shape legend: B images, H x W patch grid, C encoder width, r merge ratio, N = H * W patches,
N' = N / r^2 merged tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laco_deploy.model.merger_spec import OddGrid


def fit_grid(tokens: Tensor, grid: tuple[int, int], ratio: int, odd_grid: OddGrid) -> Tensor:
    """Make both sides of the grid a multiple of `ratio`, at the bottom and the right.

    Args:
        tokens: [B, H * W, C], row-major over the grid.
        grid: (H, W).
        ratio: r.
        odd_grid: "replicate" repeats the last row and column; with r = 2 a window's mean is then
            the mean of its real patches. "crop" drops the rows and columns that fill no window.

    Returns:
        [B, H * W, C] for the H and W that result; `tokens` itself where nothing was to be done.
    """
    height, width = grid
    if height % ratio == 0 and width % ratio == 0:
        return tokens
    image = tokens.reshape(-1, height, width, tokens.shape[2])  # [B, H, W, C]
    if odd_grid == "crop":
        image = image[:, : height - height % ratio, : width - width % ratio]
    else:
        # Slices, not Pad: some engines have Pad for zeros only.
        last_row = image[:, height - 1 : height]  # [B, 1, W, C]
        image = torch.cat([image, *[last_row] * (-height % ratio)], dim=1)
        last_column = image[:, :, width - 1 : width]  # [B, H, 1, C]
        image = torch.cat([image, *[last_column] * (-width % ratio)], dim=2)
    return image.flatten(1, 2)


def space_to_channel(tokens: Tensor, grid: tuple[int, int], ratio: int) -> Tensor:
    """Stack each r x r window of patches along the channels, in the order (row, column, channel).

    Args:
        tokens: [B, H * W, C], row-major over the grid.
        grid: (H, W), both divisible by `ratio`.
        ratio: r.

    Returns:
        [B, N', r * r * C], windows row-major; channel index = (i * r + j) * C + c for the patch in
        row i, column j of the window (as in InternVL's pixel shuffle v2).
    """
    batch, _, channels = tokens.shape
    height, width = grid
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


__all__ = ["fit_grid", "space_to_channel", "window_mean"]
