"""Any-resolution tiling against transformers' LLaVA-OneVision, and against pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaOnevisionProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

from laco_runtimes.errors import ArgumentError
from laco_runtimes.images import resize_square
from laco_runtimes.tiling import TILE_GRIDS, TokenLayout, cut_tiles, select_grid, unpad

SIDE = 56


def sizes(count: int = 200) -> list[tuple[int, int]]:
    """Heights and widths from small to far above 6 tiles, some extremely long."""
    random = np.random.default_rng(0)
    both = np.exp(random.uniform(np.log(5), np.log(900), (count, 2))).astype(int)
    return [(int(height), int(width)) for height, width in both]


def layout(**settings: Any) -> TokenLayout:
    return TokenLayout(**{"image_size": SIDE, "merged_grid": (4, 4), **settings})


def test_grid_is_the_one_that_transformers_chooses() -> None:
    pinpoints = [[rows * SIDE, columns * SIDE] for rows, columns in TILE_GRIDS]
    for size in sizes():
        height, width = select_best_resolution(list(size), pinpoints)
        assert select_grid(size, SIDE) == (height // SIDE, width // SIDE), size


def test_grids_go_from_one_tile_to_six_by_six() -> None:
    assert len(set(TILE_GRIDS)) == 36
    assert select_grid((20, 20), SIDE) == (1, 1)
    assert select_grid((5000, 5000), SIDE) == (6, 6)
    assert select_grid((SIDE, 3 * SIDE), SIDE) == (1, 3)


def test_first_tile_is_the_whole_image_squashed() -> None:
    image = Image.effect_noise((150, 90), 80).convert("RGB")
    assert np.array_equal(cut_tiles(image, SIDE)[0], resize_square(image, SIDE))


def test_parts_follow_row_by_row() -> None:
    # 2 rows, 3 columns; every tile of one grey, so nothing is resampled across tiles.
    grey = np.arange(10, 70, 10, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(np.kron(grey, np.ones((SIDE, SIDE), np.uint8))).convert("RGB")
    tiles = cut_tiles(image, SIDE)
    assert tiles.shape == (7, SIDE, SIDE, 3)
    assert [int(tile.mean()) for tile in tiles[1:]] == [10, 20, 30, 40, 50, 60]


def test_image_keeps_its_proportions_in_the_middle_of_black() -> None:
    white = Image.new("RGB", (3 * SIDE, SIDE // 2), "white")  # exactly half of 1 x 3 tiles
    parts = cut_tiles(white, SIDE)[1:]
    canvas = np.concatenate(list(parts), axis=1)
    lit = canvas.any(axis=(1, 2)).nonzero()[0]
    assert (lit[0], lit[-1]) == (SIDE // 4, SIDE // 4 + SIDE // 2 - 1)


def test_unpad_keeps_what_transformers_keeps() -> None:
    for size in sizes():
        for rows, columns in ((4, 4), (8, 12), (84, 28), (5, 5)):
            if rows * size[1] // size[0] == 0 or columns * size[0] // size[1] == 0:
                continue  # less than one row or column: see the test of long images
            expected = unpad_image(torch.arange(rows * columns).reshape(1, rows, columns), size)[0]
            found = torch.arange(rows * columns).reshape(rows, columns)[
                unpad(size, (rows, columns))
            ]
            assert torch.equal(found, expected), (size, rows, columns)


def test_unpad_finds_the_image_that_cut_tiles_pasted() -> None:
    for size in sizes(40):
        if max(size) > 20 * min(size):
            continue
        tiles = cut_tiles(Image.new("RGB", size[::-1], "white"), 14)[1:]
        rows, columns = select_grid(size, 14)
        canvas = tiles.reshape(rows, columns, 14, 14, 3).swapaxes(1, 2).reshape(rows * 14, -1, 3)
        kept = canvas[unpad(size, canvas.shape[:2])]
        assert kept.min() > 0 or min(kept.shape[:2]) <= 2
        assert abs(int((canvas[..., 0] > 0).sum()) - kept[..., 0].size) <= 2 * max(canvas.shape)


def test_a_long_image_keeps_a_row_of_tokens() -> None:
    size = (20, 5000)
    rows, columns = unpad(size, (4, 24))
    assert (rows.stop - rows.start, columns) == (2, slice(0, 24))
    assert layout().image_tokens(size, 7) == 16 + 2 * 24
    assert len(cut_tiles(Image.new("RGB", (5000, 1)), SIDE)) == 2  # not to be seen in any grid


@pytest.mark.parametrize("side", [4, 14, 16])
def test_number_of_tokens_is_that_of_transformers(side: int) -> None:
    other: Any = object.__new__(LlavaOnevisionProcessor)
    other.image_processor = SimpleNamespace(
        image_grid_pinpoints=[[r * SIDE, c * SIDE] for r, c in TILE_GRIDS]
    )
    other.num_image_tokens, other.vision_aspect_ratio = side * side, "anyres_max_9"
    ours = layout(merged_grid=(side, side), newline=True)
    for size in sizes():
        rows, columns = select_grid(size, SIDE)
        tall, wide = rows * side, columns * side
        if size[0] * wide < size[1] or size[1] * tall < size[0]:
            continue  # less than one row or column: see the test of long images
        expected = other._get_number_of_features(*size, SIDE, SIDE)
        assert ours.image_tokens(size, 1 + rows * columns) == expected, size


def test_sides_count_merged_tokens() -> None:
    """H5. Put back (sides of the patch grid, 32 x 32) an image of one tile would take 1024 tokens
    and the largest image 41,984, where the language model gets 256 and 2,608."""
    merged = layout(image_size=448, merged_grid=(16, 16), newline=True)
    assert merged.tokens_per_tile == 256
    # 96 x 96 tokens are scaled down by sqrt(96 * 96 / (9 * 256)) = 2, plus 48 ends of rows.
    assert merged.image_tokens((2688, 2688), 37) == 256 + 48 * 49
    assert max(merged.image_tokens((h, w), 1 + r * c) for h, w, r, c in _largest()) < 2560 * 1.21


def _largest() -> list[tuple[int, int, int, int]]:
    pairs = [(448 * rows, 448 * columns) for rows, columns in TILE_GRIDS]
    return [(*size, *select_grid(size, 448)) for size in pairs]


def test_map_is_scaled_down_only_well_above_the_limit() -> None:
    # 3 x 3 tiles are the limit itself; 3 x 4 exceed it by sqrt(12 / 9) = 1.15.
    ours = layout(merged_grid=(10, 10))
    assert ours.detail_map((3 * SIDE, 3 * SIDE), (3, 3)).size == (30, 30)
    assert ours.detail_map((3 * SIDE, 4 * SIDE), (3, 4)).size == (25, 34)
    assert layout(merged_grid=(10, 10), max_tiles=12).detail_map(
        (3 * SIDE, 4 * SIDE), (3, 4)
    ).size == (30, 40)


def test_newline_adds_one_token_per_row_image_and_video() -> None:
    plain, marked = layout(), layout(newline=True)
    assert marked.image_tokens((10, 10), 1) - plain.image_tokens((10, 10), 1) == 1
    assert marked.image_tokens((2 * SIDE, SIDE), 3) - plain.image_tokens((2 * SIDE, SIDE), 3) == 8
    assert marked.video_tokens(5) - plain.video_tokens(5) == 1


def test_video_frames_are_pooled_by_the_stride() -> None:
    assert layout(merged_grid=(16, 16)).video_tokens(32) == 8192
    assert layout(merged_grid=(16, 16), video_pool_stride=2).video_tokens(32) == 2048
    assert layout(merged_grid=(27, 27), video_pool_stride=2).video_tokens(1) == 196


def test_tiles_that_do_not_belong_to_the_size_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"has 3 tiles, but is cut into 1 \+ 1 \* 3"):
        layout().image_tokens((SIDE, 3 * SIDE), 3)
