"""From the visual tokens of tiles to those of images and videos, as LLaVA-OneVision lays them out.

The numbers of tokens are those of `laco_runtimes.tiling`. Shapes: T tiles, N' tokens of a tile,
D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from laco_runtimes.errors import ArgumentError
from laco_runtimes.tiling import Grid, Size, TokenLayout


@dataclass(frozen=True, slots=True)
class Visual:
    """One image or one video of a prompt."""

    num_tiles: int
    """Tiles of the image, or frames of the video."""
    size: Size | None = None
    """(height, width) of the image in pixels; needed where it has several tiles."""
    is_video: bool = False


def read_visuals(
    tiles: int,
    image_sizes: Tensor | None = None,
    num_tiles: Tensor | None = None,
    is_video: Tensor | None = None,
) -> list[Visual]:
    """What a batch of tiles is made of.

    Args:
        tiles: T.
        image_sizes: [images and videos, 2], height and width in pixels.
        num_tiles: [images and videos]; without it every tile is an image.
        is_video: [images and videos], bool; without it there is no video.

    Raises:
        ArgumentError: lengths that do not agree, or tiles that do not add up.
    """
    counts = [1] * tiles if num_tiles is None else [int(count) for count in num_tiles.tolist()]
    if sum(counts) != tiles or any(count < 1 for count in counts):
        raise ArgumentError(
            f"num_tiles is {counts}, but there are {tiles} tiles in pixel_values. "
            "Pass all that the processor returns."
        )
    for name, values in (("image_sizes", image_sizes), ("is_video", is_video)):
        if values is not None and len(values) != len(counts):
            raise ArgumentError(
                f"{name} has {len(values)} entries for {len(counts)} images and videos. "
                "Pass all that the processor returns."
            )
    sizes = [None] * len(counts) if image_sizes is None else image_sizes.tolist()
    videos = [False] * len(counts) if is_video is None else is_video.tolist()
    return [
        Visual(count, None if size is None else (int(size[0]), int(size[1])), bool(video))
        for count, size, video in zip(counts, sizes, videos, strict=True)
    ]


def assemble(
    features: Tensor, visuals: Sequence[Visual], layout: TokenLayout, newline: Tensor | None
) -> list[Tensor]:
    """The tokens of each image and video, in order.

    Args:
        features: [T, N', D], projected.
        visuals: whose `num_tiles` add up to T.
        layout: of the model; `layout.newline` says whether `newline` is used.
        newline: [D], `image_newline` of the model; None where it has none.

    Returns:
        [tokens, D] each, as many as `layout` counts.

    Raises:
        ArgumentError: an image of several tiles whose size is not known, or does not fit them.
    """
    end = features.new_empty(0, features.shape[2])  # [0 or 1, D]
    if newline is not None:
        end = newline.to(features).unsqueeze(0)
    parts = features.split([visual.num_tiles for visual in visuals])
    return [
        _assemble_one(tiles, visual, layout, end)
        for tiles, visual in zip(parts, visuals, strict=True)
    ]


def _assemble_one(tiles: Tensor, visual: Visual, layout: TokenLayout, end: Tensor) -> Tensor:
    if visual.is_video:
        return torch.cat([pool_frames(tiles, layout).flatten(0, 1), end])
    if visual.num_tiles == 1:
        return torch.cat([tiles[0], end])
    if visual.size is None:
        raise ArgumentError(
            f"an image has {visual.num_tiles} tiles, but its size is not given. "
            "Pass the image_sizes that the processor returns."
        )
    grid = layout.tile_grid(visual.size, visual.num_tiles)
    rows = _detail_rows(tiles[1:], visual.size, grid, layout)  # [h, w, D]
    ends = end.unsqueeze(0).expand(rows.shape[0], -1, -1)  # [h, 0 or 1, D]
    return torch.cat([tiles[0], torch.cat([rows, ends], dim=1).flatten(0, 1)])


def _detail_rows(tiles: Tensor, size: Size, grid: Grid, layout: TokenLayout) -> Tensor:
    """Tiles of the parts of an image, [rows * columns, N', D], as one map [h, w, D]."""
    (rows, columns), (tall, wide) = grid, layout.merged_grid
    whole = tiles.reshape(rows, columns, tall, wide, -1).transpose(1, 2)
    whole = whole.reshape(rows * tall, columns * wide, -1)
    detail = layout.detail_map(size, grid)
    kept = whole[detail.rows, detail.columns]
    if kept.shape[:2] != detail.size:
        kept = _interpolate(kept.unsqueeze(0), detail.size).squeeze(0)
    return kept


def pool_frames(frames: Tensor, layout: TokenLayout) -> Tensor:
    """Frames of a video with fewer tokens each: [F, N', D] -> [F, N' / stride^2, D], rounded up."""
    if layout.video_pool_stride == 1:
        return frames
    maps = frames.unflatten(1, layout.merged_grid)  # [F, H', W', D]
    return _interpolate(maps, layout.frame_grid).flatten(1, 2)


def _interpolate(maps: Tensor, size: Size) -> Tensor:
    """[B, H, W, D] -> [B, *size, D]."""
    channels_first = maps.permute(0, 3, 1, 2)
    scaled = F.interpolate(channels_first, size=size, mode="bilinear", align_corners=False)
    return scaled.permute(0, 2, 3, 1)


__all__ = ["Visual", "assemble", "pool_frames", "read_visuals"]
