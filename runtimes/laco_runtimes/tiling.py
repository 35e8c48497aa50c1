"""Any-resolution tiling: into which tiles an image is cut, and how many visual tokens that makes.

Arithmetic and pixels only: the number of tokens is known before, and without, the encoder.

Facts and formulas: LLaVA-OneVision (LLaVA-NeXT, llava/mm_utils.py and llava/model/llava_arch.py).
Sides count *merged* tokens, u a tile, not patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laco_runtimes.errors import ArgumentError
from laco_runtimes.images import resize_square

Grid = tuple[int, int]
"""(rows, columns)."""
Size = tuple[int, int]
"""(height, width)."""

ImageMode = Literal["square", "anyres"]
"""`square`: every image is one tile. `anyres`: an image alone in its prompt is a tile of the whole
and a grid of tiles of its parts."""

IMAGE_MODES: tuple[ImageMode, ...] = get_args(ImageMode)

TILE_GRIDS: tuple[Grid, ...] = tuple(
    (rows, columns) for columns in range(1, 7) for rows in range(1, 7)
)
"""(1x1) to (6x6). Of two that suit an image equally, the one with fewer columns is taken."""

DOWNSCALE_ABOVE = 1.1
"""The detail map is scaled down only where that shrinks its sides by more than this factor."""


def select_grid(size: Size, tile: int) -> Grid:
    """The grid of tiles that shows most of an image, with the least black around it.

    Args:
        size: (height, width) of the image in pixels.
        tile: S, side of a tile in pixels.
    """
    height, width = size

    def merit(grid: Grid) -> tuple[int, int]:
        tall, wide = grid[0] * tile, grid[1] * tile
        scale = min(wide / width, tall / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - tall * wide

    return max(TILE_GRIDS, key=merit)


def cut_tiles(image: Image.Image, tile: int) -> NDArray[np.uint8]:
    """An RGB image as tiles: the whole squashed to a square, then its parts, row by row.

    The parts are cut from the image at its own proportions, centred on black.

    Returns:
        [1 + rows * columns, S, S, 3].
    """
    rows, columns = select_grid((image.height, image.width), tile)
    tall, wide = rows * tile, columns * tile
    canvas = np.zeros((tall, wide, 3), np.uint8)
    height, width = _fit((image.height, image.width), (tall, wide))
    top, left = (tall - height) // 2, (wide - width) // 2
    canvas[top : top + height, left : left + width] = _resize(image, (height, width))
    parts = canvas.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return np.concatenate([resize_square(image, tile)[None], parts.reshape(-1, tile, tile, 3)])


def _fit(size: Size, room: Size) -> Size:
    """Largest size of the same proportions that fits."""
    across, down = room[1] / size[1], room[0] / size[0]
    if across < down:
        return min(math.ceil(size[0] * across), room[0]), room[1]
    return room[0], min(math.ceil(size[1] * down), room[1])


def _resize(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """Bicubic, width before height, as `laco_runtimes.images.resize_square` does and why."""
    for target in ((size[1], image.height), (size[1], size[0])):
        if image.size != target:
            image = image.resize(target, Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def unpad(size: Size, map_size: Size) -> tuple[slice, slice]:
    """Rows and columns of a map of tiles that lie on the image, not on the black around it.

    Args:
        size: (height, width) of the image in pixels.
        map_size: rows and columns of the whole map.
    """
    (height, width), (rows, columns) = size, map_size
    if width * rows > columns * height:  # the image is wider: black above and below
        margin = (rows - max(height * columns // width, 1)) // 2
        return slice(margin, rows - margin), slice(0, columns)
    margin = (columns - max(width * rows // height, 1)) // 2
    return slice(0, rows), slice(margin, columns - margin)


@dataclass(frozen=True, slots=True)
class DetailMap:
    """What becomes of the tiles of an image's parts, laid side by side."""

    rows: slice
    columns: slice
    """The part of the map that lies on the image."""
    size: Size
    """Rows and columns in the end: of that part, or scaled down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """How the visual tokens of tiles become those of an image or a video."""

    image_size: int
    """S, side of a tile in pixels."""
    merged_grid: Grid
    """(H', W') of the tokens of one tile."""
    image_mode: ImageMode = "square"
    max_tiles: int = 9
    """Of a detail map, at most about as many tokens as so many tiles have."""
    newline: bool = False
    """Whether a vector marks the end of each row of a detail map, of an image of one tile, and of a
    video."""
    video_pool_stride: int = 1
    """Frames are pooled by this before the language model sees them."""

    @property
    def tokens_per_tile(self) -> int:
        """N'."""
        return self.merged_grid[0] * self.merged_grid[1]

    @property
    def frame_grid(self) -> Grid:
        """Rows and columns of the tokens of a video frame."""
        rows, columns = self.merged_grid
        return -(-rows // self.video_pool_stride), -(-columns // self.video_pool_stride)

    def tile_grid(self, size: Size, num_tiles: int) -> Grid:
        """The grid of an image that is cut into several tiles.

        Raises:
            ArgumentError: an image of that size is not cut into that many tiles.
        """
        rows, columns = select_grid(size, self.image_size)
        if num_tiles != 1 + rows * columns:
            raise ArgumentError(
                f"an image of {size[0]}x{size[1]} pixels has {num_tiles} tiles, but is cut into "
                f"1 + {rows} * {columns} of {self.image_size} pixels. "
                "Make the inputs with the processor of this checkpoint."
            )
        return rows, columns

    def detail_map(self, size: Size, grid: Grid) -> DetailMap:
        """Which part of the tokens of a grid of tiles is kept, and how far it is scaled down.

        Args:
            size: (height, width) of the image in pixels.
            grid: rows and columns of its tiles.
        """
        whole = grid[0] * self.merged_grid[0], grid[1] * self.merged_grid[1]
        rows, columns = unpad(size, whole)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        factor = math.sqrt(height * width / (self.max_tiles * self.tokens_per_tile))
        if factor > DOWNSCALE_ABOVE:
            height, width = max(int(height // factor), 1), max(int(width // factor), 1)
        return DetailMap(rows, columns, (height, width))

    def image_tokens(self, size: Size, num_tiles: int) -> int:
        """Visual tokens of an image.

        Raises:
            ArgumentError: an image of that size is not cut into that many tiles.
        """
        if num_tiles == 1:
            return self.tokens_per_tile + self.newline
        height, width = self.detail_map(size, self.tile_grid(size, num_tiles)).size
        return self.tokens_per_tile + height * (width + self.newline)

    def video_tokens(self, frames: int) -> int:
        """Visual tokens of a video of so many frames."""
        rows, columns = self.frame_grid
        return frames * rows * columns + self.newline


__all__ = [
    "DOWNSCALE_ABOVE",
    "IMAGE_MODES",
    "TILE_GRIDS",
    "DetailMap",
    "Grid",
    "ImageMode",
    "Size",
    "TokenLayout",
    "cut_tiles",
    "select_grid",
    "unpad",
]
