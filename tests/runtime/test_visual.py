"""Images and videos of a prompt: tiles, numbers of tokens, their order, and what a digest tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from laco_runtimes.errors import ArgumentError, EngineError, ImageError
from laco_runtimes.images import Preprocessing, preprocess
from laco_runtimes.tiling import TILE_GRIDS, TokenLayout, cut_tiles, select_grid
from laco_runtimes.video import Video
from laco_runtimes.visual import VisualPart, arrange, arrange_tiles, pixel_values, read_visuals

SIDE, WIDTH = 8, 3
SPEC = Preprocessing(image_size=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
NEWLINE = np.full(WIDTH, -7, np.float32)


def layout(**settings: Any) -> TokenLayout:
    return TokenLayout(**{"image_size": SIDE, "merged_grid": (2, 2), **settings})


ANYRES = layout(image_mode="anyres", newline=True)


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def read(source: Any, own: TokenLayout = ANYRES, **options: Any) -> VisualPart:
    [part] = read_visuals([source], SPEC, own, **options)
    return part


def numbered(tiles: int, tokens: int = 4) -> NDArray[np.float32]:
    """Token i of tile t is 100 t + i."""
    numbers = 100 * np.arange(tiles)[:, None] + np.arange(tokens)
    return np.repeat(numbers[..., None], WIDTH, axis=-1).astype(np.float32)


def test_a_square_image_is_the_tile_that_it_always_was() -> None:
    picture = Image.fromarray(noise(30, 20))
    part = read(picture, layout())
    assert (part.tiles, part.tokens, part.size, part.is_video) == (1, 4, (20, 30), False)
    assert np.array_equal(pixel_values(part.squares, SPEC), preprocess(picture, SPEC))


def test_an_image_alone_is_cut_and_one_among_others_is_not() -> None:
    wide = noise(24, 8)
    assert np.array_equal(read(wide).squares, cut_tiles(Image.fromarray(wide), SIDE))
    assert read(wide).tiles == 4
    assert [part.tiles for part in read_visuals([wide, wide], SPEC, ANYRES)] == [1, 1]
    assert [part.tiles for part in read_visuals([wide, Video([wide])], SPEC, ANYRES)] == [1, 1]
    assert read(wide, alone=False).tiles == 1
    assert read(wide, replace(ANYRES, image_mode="square")).tiles == 1


def test_no_images_are_no_parts() -> None:
    assert read_visuals([], SPEC, ANYRES) == []


def test_pixels_of_all_tiles_are_normalised_alike() -> None:
    part = read(noise(24, 8))
    values = pixel_values(part.squares, SPEC)
    assert values.shape == (4, 3, SIDE, SIDE)
    for value, square in zip(values, part.squares, strict=True):
        assert np.array_equal(value[None], preprocess(Image.fromarray(square), SPEC))


def test_tokens_stand_in_the_order_of_the_picture() -> None:
    # 1 x 2 tiles of 2 x 2 tokens: tile 0 is the whole, tiles 1 and 2 stand side by side.
    part = read(noise(16, 8))
    found = arrange(numbered(3), part, ANYRES, NEWLINE)[:, 0]
    assert found.tolist() == [0, 1, 2, 3, 100, 101, 200, 201, -7, 102, 103, 202, 203, -7]
    without = arrange(numbered(3), part, replace(ANYRES, newline=False), None)[:, 0]
    assert without.tolist() == [0, 1, 2, 3, 100, 101, 200, 201, 102, 103, 202, 203]


def test_an_image_of_one_tile_ends_with_the_newline() -> None:
    own = layout(newline=True)
    part = read(noise(5, 5), own)
    assert arrange(numbered(1), part, own, NEWLINE)[:, 0].tolist() == [0, 1, 2, 3, -7]
    assert part.tokens == 5


def test_a_video_ends_with_one_newline_and_its_frames_are_pooled() -> None:
    own = layout(newline=True)
    part = read(Video(np.stack([noise(9, 6, seed) for seed in range(3)])), own)
    assert (part.is_video, part.tiles, part.tokens, part.size) == (True, 3, 13, (6, 9))
    found = arrange(numbered(3), part, own, NEWLINE)[:, 0]
    assert found.tolist() == [0, 1, 2, 3, 100, 101, 102, 103, 200, 201, 202, 203, -7]
    pooled = replace(own, video_pool_stride=2)
    part = read(Video([noise(9, 6, seed) for seed in range(3)]), pooled)
    assert arrange(numbered(3), part, pooled, NEWLINE)[:, 0].tolist() == [1.5, 101.5, 201.5, -7]


def test_tokens_on_black_are_left_out() -> None:
    # A quarter of the height of 1 x 4 tiles: the rows above and below hold no image.
    own = layout(image_mode="anyres", merged_grid=(4, 4))
    part = read(noise(32, 4), own)
    assert part.tiles == 5
    found = arrange(numbered(5, 16), part, own, None)[16:, 0].reshape(-1, 16)
    second = [100 * tile + 4 + i for tile in range(1, 5) for i in range(4)]
    assert found.tolist() == [second, [one + 4 for one in second]]


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    newline=st.booleans(),
    max_tiles=st.integers(1, 12),
    alone=st.booleans(),
)
def test_tokens_are_as_many_as_were_counted_for_any_image(
    height: int, width: int, grid: tuple[int, int], newline: bool, max_tiles: int, alone: bool
) -> None:
    own = layout(image_mode="anyres", merged_grid=grid, newline=newline, max_tiles=max_tiles)
    part = read(np.zeros((height, width, 3), np.uint8), own, alone=alone)
    rows, columns = select_grid((height, width), SIDE)
    assert part.tiles == (1 + rows * columns if alone else 1)
    vector = NEWLINE if newline else None
    found = arrange(numbered(part.tiles, grid[0] * grid[1]), part, own, vector)
    assert found.shape == (part.tokens, WIDTH)
    assert found.dtype == np.float32


@settings(max_examples=100, deadline=None)
@given(
    frames=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.integers(1, 8),
    newline=st.booleans(),
)
def test_tokens_are_as_many_as_were_counted_for_any_video(
    frames: int, grid: tuple[int, int], stride: int, newline: bool
) -> None:
    own = layout(merged_grid=grid, newline=newline, video_pool_stride=stride)
    part = read(Video(np.zeros((frames, 3, 4, 3), np.uint8)), own)
    assert part.tiles == frames
    assert part.tokens >= frames + newline
    features = numbered(frames, grid[0] * grid[1])
    found = arrange(features, part, own, NEWLINE if newline else None)
    assert found.shape == (part.tokens, WIDTH)


def test_features_of_another_shape_are_refused() -> None:
    part = read(noise(16, 8))
    for features in (numbered(2), numbered(3, 5), numbered(0)):
        with pytest.raises(EngineError, match=r"visual tokens for 3 tiles of 4\. Export"):
            arrange(features, part, ANYRES, NEWLINE)


def test_a_newline_goes_with_its_layout() -> None:
    part = read(noise(16, 8))
    with pytest.raises(ArgumentError, match="layout with a newline needs the vector"):
        arrange(numbered(3), part, ANYRES, None)
    with pytest.raises(ArgumentError, match="one without has none"):
        arrange(numbered(3), part, replace(ANYRES, newline=False), NEWLINE)


def test_tiles_of_another_size_of_image_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"has 3 tiles, but is cut into 1 \+ 2 \* 2"):
        arrange_tiles(numbered(3), (16, 16), layout(), None)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    side=st.integers(1, 6),
    max_tiles=st.integers(1, 12),
)
def test_a_detail_map_has_few_more_tokens_than_its_limit(
    height: int, width: int, side: int, max_tiles: int
) -> None:
    own = layout(merged_grid=(side, side), max_tiles=max_tiles)
    rows, columns = select_grid((height, width), SIDE)
    detail = own.image_tokens((height, width), 1 + rows * columns) - own.tokens_per_tile
    # A single row of tokens cannot become less than one.
    assert 1 <= detail <= max(1.1**2 * max_tiles * side**2, 6 * side)


def test_a_digest_tells_all_that_changes_the_tokens() -> None:
    one, other = noise(16, 8), noise(16, 8)
    other[3, 3, 1] ^= 1
    frames = [noise(8, 8)]
    parts = [
        read(one),
        read(other),
        read(one, alone=False),
        read(one, replace(ANYRES, newline=False)),
        read(one, replace(ANYRES, max_tiles=4)),
        read(one, replace(ANYRES, merged_grid=(4, 4))),
        read_visuals([one], replace(SPEC, mean=(0.1, 0.4, 0.3)), ANYRES)[0],
        read(frames[0], alone=False),
        read(Video(frames)),
        read(Video([*frames, *frames])),
    ]
    digests = {part.digest for part in parts}
    assert len(digests) == len(parts)
    assert {len(digest) for digest in digests} == {32}


def test_the_size_of_an_image_is_told_where_it_decides_what_lies_on_black() -> None:
    # Black at the border of one and black around the other: the same tiles, other tokens.
    wide = np.zeros((8, 16, 3), np.uint8)
    flat = np.zeros((7, 16, 3), np.uint8)
    assert np.array_equal(read(wide).squares, read(flat).squares)
    assert read(wide).digest != read(flat).digest
    assert read(wide, alone=False).digest == read(flat, alone=False).digest


def test_a_digest_is_of_the_pixels_not_of_where_they_came_from(tmp_path: Path) -> None:
    pixels = noise(16, 8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    sources = (pixels, path, str(path), path.read_bytes(), Image.fromarray(pixels))
    assert len({read(source).digest for source in sources}) == 1
    assert read(pixels[:, ::-1]).digest != read(pixels).digest


def test_a_digest_is_the_same_in_every_process() -> None:
    """A history that was saved finds its images by it."""
    found = read(np.zeros((1, 1, 3), np.uint8), layout()).digest.hex()
    assert found == "227bfa7fb5492d86ce3e826f96f2ffdbbc7d6cfc04a25bf62b6cf039f10f4cc4"


@pytest.mark.parametrize(
    "source",
    [
        *("http://example.com/a.png", "https://example.com/a.png", "HTTPS://example.com/a"),
        *("ftp://example.com/a.png", "file:///tmp/a.png", "s3://bucket/a.png"),
        "data:image/png;base64,iVBORw0KGgo=",
    ],
)
def test_urls_are_refused_as_such(source: str) -> None:
    with pytest.raises(ImageError, match=r"is a URL.*nothing is downloaded.*give its path"):
        read(source)
    with pytest.raises(ImageError, match=r"is a URL.*Save the video first"):
        read(Video(source))


def test_one_bad_image_among_good_ones_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="known format"):
        read_visuals([noise(4, 4), b"no image"], SPEC, ANYRES)


def test_every_grid_has_its_number_of_tokens() -> None:
    for rows, columns in TILE_GRIDS:
        own = layout(image_mode="anyres", max_tiles=36)
        part = read(np.zeros((rows * SIDE, columns * SIDE, 3), np.uint8), own)
        assert part.tokens == 4 * (1 + rows * columns)
