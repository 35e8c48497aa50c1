"""Images of several tiles: encoded together, each gets the visual tokens that it gets alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from laco_runtimes.encoding import MAX_TILES, ImageReader
from laco_runtimes.errors import EngineError
from laco_runtimes.feature_cache import FeatureCache
from laco_runtimes.images import Preprocessing
from laco_runtimes.tiling import TokenLayout

SIDE, WIDTH = 8, 3
LAYOUT = TokenLayout(image_size=SIDE, merged_grid=(2, 2), image_mode="anyres", newline=True)
NEWLINE = np.full(WIDTH, 7, np.float32)


class Encoder:
    """Visual tokens are the four quarters of a tile, channel by channel."""

    def __init__(self, tokens: int = 4) -> None:
        self.tiles: list[int] = []
        self.tokens = tokens

    def encode(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        self.tiles.append(len(pixel_values))
        quarters = pixel_values.reshape(-1, 3, 2, 4, 2, 4).mean(axis=(3, 5))  # [T, 3, 2, 2]
        tokens = quarters.reshape(-1, 3, 4).swapaxes(1, 2)[:, : self.tokens]
        return np.asarray(tokens, np.float32)


def reader(encoder: Encoder, max_bytes: int = 10**6, *, batches: bool = True) -> ImageReader:
    return ImageReader(
        encoder,
        preprocessing=Preprocessing(image_size=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
        layout=LAYOUT,
        newline=NEWLINE,
        cache=FeatureCache(max_bytes),
        variant="laco",
        batches=batches,
    )


def picture(width: int, height: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


PICTURES = [picture(16, 8, 1), picture(8, 8, 2), picture(24, 30, 3), picture(9, 40, 4)]


@pytest.mark.parametrize("batches", [True, False])
def test_in_a_group_each_image_has_its_own_tokens(batches: bool) -> None:
    encoder = Encoder()
    one = reader(encoder, batches=batches)
    parts = [part for image in PICTURES for part in one.read([image])]
    assert len({part.tiles for part in parts}) > 2  # tiles differ, so places in a group do
    found = one.encode(parts)
    for part in parts:
        alone = reader(Encoder()).encode([part])[part.digest]
        assert found[part.digest].shape == (part.tokens, WIDTH)
        np.testing.assert_array_equal(found[part.digest], alone)
    if batches:
        assert len(encoder.tiles) < len(parts)
    else:
        assert encoder.tiles == [part.tiles for part in parts]


def test_groups_hold_whole_images_and_no_more_tiles_than_the_bound_allows() -> None:
    one = reader(Encoder())
    parts = [part for image in PICTURES * 4 for part in one.read([image])]
    groups = list(one.groups(parts))
    assert [part for group in groups for part in group] == parts
    for group, following in pairwise(groups):
        tiles = sum(part.tiles for part in group)
        assert tiles <= MAX_TILES or len(group) == 1
        assert tiles + following[0].tiles > MAX_TILES


def test_only_what_the_cache_does_not_hold_is_encoded() -> None:
    encoder = Encoder()
    one = reader(encoder)
    first, second = one.read([PICTURES[0]]), one.read([PICTURES[2]])
    one.encode(first)
    found = one.encode([*first, *second, *first])
    assert encoder.tiles == [first[0].tiles, second[0].tiles]
    assert found.keys() == {first[0].digest, second[0].digest}


def test_an_image_that_stands_beside_others_is_one_tile_and_another_entry() -> None:
    one = reader(Encoder())
    (alone,), (beside,) = one.read([PICTURES[0]]), one.read([PICTURES[0]], alone=False)
    assert (alone.tiles > 1, beside.tiles) == (True, 1)
    assert alone.digest != beside.digest


def test_an_encoder_that_gives_other_tokens_than_declared_is_refused() -> None:
    one = reader(Encoder(tokens=3))
    with pytest.raises(EngineError, match="Export the model again"):
        one.encode(one.read([PICTURES[1]]))
