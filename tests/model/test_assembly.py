"""From tokens of tiles to those of images, against transformers' LLaVA-OneVision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaOnevisionModel

from laco_deploy.model.assembly import Visual, assemble, pool_frames, read_visuals
from laco_runtimes.errors import ArgumentError
from laco_runtimes.tiling import TILE_GRIDS, TokenLayout, select_grid

SIDE, TOKENS, WIDTH = 56, 4, 6
NEWLINE = torch.full((WIDTH,), 7.0)
SIZES = [(56, 56), (20, 30), (56, 200), (300, 40), (120, 110), (400, 400), (336, 330), (90, 700)]


def layout(**settings: Any) -> TokenLayout:
    given = {"image_size": SIDE, "merged_grid": (TOKENS, TOKENS), "newline": True, **settings}
    return TokenLayout(**given)


def features(tiles: int, tokens: int = TOKENS * TOKENS) -> Tensor:
    return torch.randn(tiles, tokens, WIDTH, generator=torch.Generator().manual_seed(tiles))


def image(size: tuple[int, int]) -> Visual:
    rows, columns = select_grid(size, SIDE)
    return Visual(1 + rows * columns, size)


def transformers_model() -> Any:
    """Just what `LlavaOnevisionModel` needs to lay out features, without weights."""
    model: Any = object.__new__(LlavaOnevisionModel)
    torch.nn.Module.__init__(model)
    # Its sides come from image_size // patch_size: those of tokens, where nothing is merged.
    model.config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=SIDE, patch_size=SIDE // TOKENS),
        image_grid_pinpoints=[[r * SIDE, c * SIDE] for r, c in TILE_GRIDS],
    )
    return model


@pytest.mark.parametrize("newline", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_image_is_laid_out_as_transformers_does(size: tuple[int, int], newline: bool) -> None:
    visual = image(size)
    tiles, vector = features(visual.num_tiles), NEWLINE if newline else None
    (expected,), _ = transformers_model().pack_image_features([tiles], [size], vector)
    (found,) = assemble(tiles, [visual], layout(newline=newline), vector)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_as_many_as_were_counted_without_the_encoder(size: tuple[int, int]) -> None:
    """H5. Put back (sides of the patch grid in the assembly) the maps do not fit the tokens."""
    visual = image(size)
    for newline in (True, False):
        ours = layout(newline=newline)
        vector = NEWLINE if newline else None
        (found,) = assemble(features(visual.num_tiles), [visual], ours, vector)
        assert len(found) == ours.image_tokens(size, visual.num_tiles)


def test_rows_of_the_map_end_with_the_newline() -> None:
    (found,) = assemble(features(3), [Visual(3, (2 * SIDE, SIDE))], layout(), NEWLINE)
    rows = found[TOKENS * TOKENS :].reshape(2 * TOKENS, TOKENS + 1, WIDTH)
    assert torch.equal(rows[:, -1], NEWLINE.expand(2 * TOKENS, -1))
    assert not (rows[:, :-1] == NEWLINE).all(-1).any()


def test_neighbours_across_tiles_are_neighbours_in_the_map() -> None:
    # Tokens numbered by their place in the whole picture of 1 x 2 tiles.
    whole = torch.arange(TOKENS * 2 * TOKENS).reshape(TOKENS, 2, TOKENS).swapaxes(0, 1)
    tiles = whole.reshape(2, TOKENS * TOKENS, 1).float()
    tiles = torch.cat([torch.full((1, TOKENS * TOKENS, 1), -1.0), tiles])
    (found,) = assemble(tiles, [Visual(3, (SIDE, 2 * SIDE))], layout(newline=False), None)
    assert found[TOKENS * TOKENS :, 0].tolist() == list(range(2 * TOKENS * TOKENS))


def test_image_of_one_tile_is_its_tokens_and_one_newline() -> None:
    tile = features(1)
    (found,) = assemble(tile, [Visual(1)], layout(), NEWLINE)
    assert torch.equal(found, torch.cat([tile[0], NEWLINE[None]]))
    (plain,) = assemble(tile, [Visual(1)], layout(newline=False), None)
    assert torch.equal(plain, tile[0])


def test_several_images_and_videos_keep_their_order() -> None:
    visuals = [Visual(1), image((SIDE, 2 * SIDE)), Visual(2, is_video=True), Visual(1)]
    tiles = features(sum(visual.num_tiles for visual in visuals))
    found = assemble(tiles, visuals, layout(), NEWLINE)
    first = 0
    for visual, tokens in zip(visuals, found, strict=True):
        alone = assemble(tiles[first : first + visual.num_tiles], [visual], layout(), NEWLINE)[0]
        assert torch.equal(tokens, alone)
        first += visual.num_tiles


def test_video_has_one_newline_at_its_end() -> None:
    frames = features(3)
    (found,) = assemble(frames, [Visual(3, is_video=True)], layout(), NEWLINE)
    assert torch.equal(found, torch.cat([frames.flatten(0, 1), NEWLINE[None]]))


def test_frames_are_pooled_as_transformers_does() -> None:
    model = transformers_model()
    for tokens in (TOKENS, 7):
        model.config.vision_config.patch_size = SIDE // tokens
        frames = features(3, tokens * tokens)
        ours = layout(merged_grid=(tokens, tokens), video_pool_stride=2)
        assert torch.equal(pool_frames(frames, ours), model.apply_pooling(frames))
        (found,) = assemble(frames, [Visual(3, is_video=True)], ours, NEWLINE)
        assert len(found) == ours.video_tokens(3)


def test_pooling_an_even_frame_by_two_is_average_pooling() -> None:
    frames = features(2)
    maps = frames.transpose(1, 2).reshape(2, WIDTH, TOKENS, TOKENS)
    expected = functional.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
    found = pool_frames(frames, layout(video_pool_stride=2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert pool_frames(frames, layout()) is frames


def test_gradient_reaches_tokens_and_newline() -> None:
    tiles, newline = features(3).requires_grad_(), NEWLINE.clone().requires_grad_()
    (found,) = assemble(tiles, [Visual(3, (2 * SIDE, SIDE))], layout(), newline)
    found.sum().backward()
    assert tiles.grad is not None
    assert (tiles.grad == 1).all()
    assert newline.grad is not None
    assert (newline.grad == 2 * TOKENS).all()


def test_visuals_are_read_from_the_arrays_of_the_processor() -> None:
    sizes, counts = torch.tensor([[30, 40], [50, 60]]), torch.tensor([3, 2])
    assert read_visuals(5, sizes, counts, torch.tensor([False, True])) == [
        Visual(3, (30, 40)),
        Visual(2, (50, 60), is_video=True),
    ]
    assert read_visuals(2) == [Visual(1), Visual(1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tiles": torch.tensor([1, 1])}, "there are 3 tiles"),
        ({"num_tiles": torch.tensor([3, 0])}, "there are 3 tiles"),
        ({"image_sizes": torch.zeros(2, 2)}, "image_sizes has 2 entries for 3"),
        (
            {"num_tiles": torch.tensor([3]), "is_video": torch.tensor([True, False])},
            "is_video has 2 entries for 1",
        ),
    ],
)
def test_arrays_that_do_not_agree_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_visuals(3, **arguments)


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        (Visual(3), "has 3 tiles, but its size is not given"),
        (Visual(3, (SIDE, SIDE)), "has 3 tiles, but is cut into"),
    ],
)
def test_tiles_without_their_size_are_refused(visual: Visual, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        assemble(features(3), [visual], layout(), NEWLINE)
