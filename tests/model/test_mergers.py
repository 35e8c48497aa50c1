"""The Patch Merge Layer against independent formulas (method notes: channel order and shortcut)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from laco_deploy.model.config import MergerSpec
from laco_deploy.model.mergers import LacoMerger, build_merger, space_to_channel, window_mean
from laco_runtimes.errors import ConfigError

GRID = (6, 12)
WIDTH = 5


def patches(grid: tuple[int, int] = GRID, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, grid[0] * grid[1], WIDTH, generator=generator)


def average_pool(tokens: Tensor, grid: tuple[int, int], ratio: int) -> Tensor:
    """torch's own average pooling, on the image layout."""
    batch, _, width = tokens.shape
    image = tokens.transpose(1, 2).reshape(batch, width, *grid)
    return functional.avg_pool2d(image, ratio).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("ratio", [2, 3])
def test_shortcut_equals_average_pooling(ratio: int) -> None:
    tokens = patches()
    shortcut = window_mean(space_to_channel(tokens, GRID, ratio), ratio)
    torch.testing.assert_close(shortcut, average_pool(tokens, GRID, ratio), rtol=0, atol=1e-6)


def test_shortcut_equals_halving_by_bilinear_interpolation() -> None:
    tokens = patches()
    image = tokens.transpose(1, 2).reshape(2, WIDTH, *GRID)
    half = functional.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
    shortcut = window_mean(space_to_channel(tokens, GRID, 2), 2)
    torch.testing.assert_close(shortcut, half.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


def test_averaging_adjacent_channels_is_not_average_pooling() -> None:
    # DC-AE averages adjacent channels, which is right for its (c, i, j) order. On the (i, j, c)
    # order here it mixes r * r different channels of one patch.
    tokens = patches()
    stacked = space_to_channel(tokens, GRID, 2)
    wrong = stacked.reshape(2, -1, WIDTH, 4).mean(dim=3)
    right = average_pool(tokens, GRID, 2)
    assert wrong.shape == right.shape
    correlation = np.corrcoef(wrong.flatten().numpy(), right.flatten().numpy())[0, 1]
    assert abs(correlation) < 0.5


def test_other_channel_order_with_its_own_grouping_gives_the_same_shortcut() -> None:
    tokens = patches()
    image = tokens.transpose(1, 2).reshape(2, WIDTH, *GRID)
    unshuffled = functional.pixel_unshuffle(image, 2).flatten(2).transpose(1, 2)  # order (c, i, j)
    adjacent = unshuffled.reshape(2, -1, WIDTH, 4).mean(dim=3)
    shortcut = window_mean(space_to_channel(tokens, GRID, 2), 2)
    torch.testing.assert_close(shortcut, adjacent, rtol=0, atol=1e-6)


def test_channels_are_stacked_row_then_column_then_channel() -> None:
    rows, columns = 4, 4
    tokens = torch.arange(rows * columns * 2).reshape(1, rows * columns, 2)
    stacked = space_to_channel(tokens, (rows, columns), 2).numpy()
    image = tokens.numpy().reshape(rows, columns, 2)
    for window, values in enumerate(stacked[0]):
        top, left = 2 * (window // 2), 2 * (window % 2)
        expected = [image[top + i, left + j, c] for i in (0, 1) for j in (0, 1) for c in (0, 1)]
        assert values.tolist() == expected


def test_space_to_channel_equals_the_six_dimensional_form() -> None:
    tokens, ratio = patches(), 3
    height, width = GRID
    plain = tokens.reshape(2, height // ratio, ratio, width // ratio, ratio, WIDTH)
    plain = plain.permute(0, 1, 3, 2, 4, 5).reshape(2, -1, ratio * ratio * WIDTH)
    assert torch.equal(space_to_channel(tokens, GRID, ratio), plain)


def test_merger_agrees_with_numpy() -> None:
    torch.manual_seed(0)
    merger = LacoMerger(MergerSpec(after_block=1), WIDTH, GRID)
    tokens = patches()
    stacked = space_to_channel(tokens, GRID, 2).double().numpy()
    normal = (stacked - stacked.mean(-1, keepdims=True)) / np.sqrt(
        stacked.var(-1, keepdims=True) + 1e-5
    )

    def linear(x: np.ndarray, layer: torch.nn.Linear) -> np.ndarray:
        weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        return np.asarray(x @ weight.T + bias)

    hidden = linear(normal, merger.linear_1)
    gelu = 0.5 * hidden * (1 + torch.erf(torch.from_numpy(hidden / np.sqrt(2))).numpy())
    shortcut = stacked.reshape(2, -1, 4, WIDTH).mean(2)
    expected = linear(gelu, merger.linear_2) + shortcut
    found = merger(tokens).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_norm_none_leaves_the_branch_unnormalised() -> None:
    merger = LacoMerger(MergerSpec(after_block=1, norm="none"), WIDTH, GRID)
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in merger.modules())


def test_parameter_count_at_published_width() -> None:
    # C = 1024, r = 2: 5,244,928 in the two linear layers and 8,192 in the LayerNorm.
    merger = build_merger(MergerSpec(after_block=6), 1024, (32, 32))
    assert sum(p.numel() for p in merger.parameters()) == 5_244_928 + 8_192


def test_a_grid_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(ConfigError, match="5x5 patch grid does not divide into 2x2"):
        build_merger(MergerSpec(after_block=1), WIDTH, (5, 5))
