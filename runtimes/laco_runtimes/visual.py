"""Images and videos of a prompt: their tiles, how many visual tokens they become, and which.

Shapes: T tiles of S x S pixels, N' = H' x W' tokens of a tile, D width of the language model. The
order of tokens is that of LLaVA-OneVision, see `laco_runtimes.tiling`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.errors import ArgumentError, EngineError
from laco_runtimes.images import (
    ImageSource,
    Preprocessing,
    load_image,
    normalise,
    resize_square,
)
from laco_runtimes.tiling import Grid, Size, TokenLayout, cut_tiles
from laco_runtimes.video import Video

Floats = NDArray[np.float32]
VisualSource = ImageSource | Video


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisualPart:
    """One image or one video of a prompt, ready for the encoder."""

    squares: NDArray[np.uint8]
    """[T, S, S, 3]: the tiles of the image, or the frames of the video."""
    size: Size
    """(height, width) in pixels of the image, or of the video's first frame."""
    is_video: bool
    tokens: int
    """Visual tokens in the prompt, `image_newline` included."""
    digest: bytes
    """BLAKE2b-256 of all that the visual tokens depend on, but the weights."""

    @property
    def tiles(self) -> int:
        """T."""
        return len(self.squares)


def read_visuals(
    sources: Sequence[VisualSource],
    preprocessing: Preprocessing,
    layout: TokenLayout,
    *,
    alone: bool = True,
) -> list[VisualPart]:
    """Decode what belongs to one prompt and cut it into tiles.

    Args:
        sources: images and videos, in the order of the prompt.
        preprocessing: of the model.
        layout: of the model; with `image_mode` "anyres", an image alone is cut into tiles.
        alone: whether `sources` is all that the model will see; False where the dialogue has other
            images, beside which none is cut.

    Raises:
        ImageFileNotFoundError: no file at a path.
        ImageError: an image or a video that cannot be read.
        MissingPackageError: a video file, and OpenCV is not installed.
    """
    cut = alone and len(sources) == 1 and layout.image_mode == "anyres"
    return [
        _read_video(source, preprocessing, layout)
        if isinstance(source, Video)
        else _read_image(source, preprocessing, layout, cut=cut)
        for source in sources
    ]


def pixel_values(squares: NDArray[np.uint8], preprocessing: Preprocessing) -> Floats:
    """[T, S, S, 3] of uint8 to what an encoder takes, [T, 3, S, S] of float32."""
    side = preprocessing.image_size
    values = np.empty((len(squares), 3, side, side), np.float32)
    for tile, square in zip(values, squares, strict=True):
        normalise(square, preprocessing, out=tile)
    return values


def arrange(
    features: Floats, part: VisualPart, layout: TokenLayout, newline: Floats | None
) -> Floats:
    """The visual tokens of an image or a video in the order in which the language model sees them.

    Args:
        features: [T, N', D], what the encoder made of `part.squares`.
        part: that image or video.
        layout: of the model and the variant that encoded it.
        newline: [D], `image_newline` of the model; None where it has none.

    Returns:
        [part.tokens, D].

    Raises:
        EngineError: features of another number of tiles or tokens.
        ArgumentError: a layout with a newline without the vector, or the other way round.
    """
    if features.shape[:2] != (part.tiles, layout.tokens_per_tile):
        raise EngineError(
            f"the vision encoder gave {list(features.shape[:2])} visual tokens for {part.tiles} "
            f"tiles of {layout.tokens_per_tile}. Export the model again."
        )
    return arrange_tiles(features, part.size, layout, newline, is_video=part.is_video)


def arrange_tiles(
    features: Floats,
    size: Size,
    layout: TokenLayout,
    newline: Floats | None,
    *,
    is_video: bool = False,
) -> Floats:
    """As `arrange`, of any tiles.

    Args:
        features: [T, N', D].
        size: (height, width) in pixels of the image; read where it has several tiles.
        layout: of the model and the variant.
        newline: [D], or None.
        is_video: whether the tiles are the frames of a video.

    Raises:
        ArgumentError: tiles that an image of this size is not cut into, or a layout with a newline
            without the vector.
    """
    if layout.newline != (newline is not None):
        raise ArgumentError(
            "a layout with a newline needs the vector, and one without has none. "
            "Take both from the same model."
        )
    end = np.empty((0, features.shape[2]), np.float32) if newline is None else newline[None]
    if is_video:
        frames = _scale(features.reshape(len(features), *layout.merged_grid, -1), layout.frame_grid)
        return np.concatenate([frames.reshape(-1, features.shape[2]), end])
    if len(features) == 1:
        return np.concatenate([features[0], end])
    rows = _detail_rows(features, size, layout)  # [h, w, D]
    ends = np.broadcast_to(end, (len(rows), *end.shape))  # [h, 0 or 1, D]
    detail = np.concatenate([rows, ends], axis=1)
    return np.concatenate([features[0], detail.reshape(-1, features.shape[2])])


def _read_image(
    source: ImageSource, preprocessing: Preprocessing, layout: TokenLayout, *, cut: bool
) -> VisualPart:
    image, side = load_image(source), preprocessing.image_size
    squares = cut_tiles(image, side) if cut else resize_square(image, side)[None]
    size = image.height, image.width
    tokens = layout.image_tokens(size, len(squares))
    return _part(squares, size, tokens, preprocessing, layout, is_video=False)


def _read_video(video: Video, preprocessing: Preprocessing, layout: TokenLayout) -> VisualPart:
    frames = video.read(
        lambda frame: (
            resize_square(frame, preprocessing.image_size),
            (frame.height, frame.width),
        )
    )
    squares = np.stack([square for square, _ in frames])
    tokens = layout.video_tokens(len(squares))
    return _part(squares, frames[0][1], tokens, preprocessing, layout, is_video=True)


def _part(
    squares: NDArray[np.uint8],
    size: Size,
    tokens: int,
    preprocessing: Preprocessing,
    layout: TokenLayout,
    *,
    is_video: bool,
) -> VisualPart:
    # The size of an image only counts where it says which tokens of its tiles lie on black.
    cut_size = size if len(squares) > 1 and not is_video else None
    settings = [squares.shape, cut_size, is_video, asdict(preprocessing), asdict(layout)]
    hashed = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=32)
    hashed.update(np.ascontiguousarray(squares).data)
    return VisualPart(
        squares=squares, size=size, is_video=is_video, tokens=tokens, digest=hashed.digest()
    )


def _detail_rows(tiles: Floats, size: Size, layout: TokenLayout) -> Floats:
    """Tiles of an image, [1 + rows * columns, N', D], as one map of its parts [h, w, D]."""
    grid = layout.tile_grid(size, len(tiles))
    (rows, columns), (tall, wide) = grid, layout.merged_grid
    whole = tiles[1:].reshape(rows, columns, tall, wide, -1).swapaxes(1, 2)
    whole = whole.reshape(rows * tall, columns * wide, -1)
    detail = layout.detail_map(size, grid)
    kept: Floats = _scale(whole[None, detail.rows, detail.columns], detail.size)[0]
    return kept


def _scale(maps: Floats, size: Grid) -> Floats:
    """[B, H, W, D] -> [B, *size, D], bilinear with aligned corners of pixels, not of centres."""
    for axis, new in ((1, size[0]), (2, size[1])):
        maps = _scale_axis(maps, axis, new)
    return maps


def _scale_axis(maps: Floats, axis: int, new: int) -> Floats:
    old = maps.shape[axis]
    if old == new:
        return maps
    # Not antialiased, as `torch.nn.functional.interpolate` of the training is not either.
    place = np.maximum((np.arange(new, dtype=np.float32) + 0.5) * np.float32(old / new) - 0.5, 0)
    first = place.astype(np.intp)
    second = np.minimum(first + 1, old - 1)
    share = (place - first).astype(np.float32)
    share = share.reshape(-1, *[1] * (maps.ndim - 1 - axis))
    scaled: Floats = maps.take(first, axis)
    scaled *= 1 - share
    other = maps.take(second, axis)
    other *= share
    scaled += other
    return scaled


__all__ = [
    "VisualPart",
    "VisualSource",
    "arrange",
    "arrange_tiles",
    "pixel_values",
    "read_visuals",
]
