"""A runtime shows the model what training showed it: the same pixels, ids and visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from laco_deploy.model import LacoConfig, LacoForConditionalGeneration, LacoProcessor
from laco_deploy.model.assembly import Visual, assemble
from laco_deploy.training.corpus.video import read_frames
from laco_deploy.training.tokenizer import IMAGE_TOKEN, train_tokenizer
from laco_runtimes.generation import splice
from laco_runtimes.images import Preprocessing
from laco_runtimes.prompt import chatml, encode_text
from laco_runtimes.tiling import TILE_GRIDS, TokenLayout, select_grid
from laco_runtimes.video import Video
from laco_runtimes.visual import VisualSource, arrange, arrange_tiles, pixel_values, read_visuals
from tests.bundles import IMAGE_SIZE, PROMPTS, random_config, random_model
from tests.training.corpus.videos import write_video

SPEC = Preprocessing(image_size=IMAGE_SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
TOKENIZER = train_tokenizer([*PROMPTS, "system user assistant You are a helpful assistant."])
QUESTION = "How many dots are there in the picture?"

LAYOUTS: dict[str, dict[str, Any]] = {
    "square": {},
    "newline": {"image_newline": True},
    "anyres": {"image_mode": "anyres"},
    "anyres with newline": {"image_mode": "anyres", "image_newline": True},
    "scaled down": {"image_mode": "anyres", "image_newline": True, "max_tiles": 1},
    "pooled video": {"image_newline": True, "video_pool_stride": 3},
}


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


FRAMES = np.random.default_rng(1).integers(0, 256, (5, 40, 70, 3), np.uint8)

PROMPTED: dict[str, list[VisualSource]] = {
    "one image": [noise(130, 60)],
    "one long image": [noise(12, 300)],
    "one small image": [noise(9, 9)],
    "two images": [noise(130, 60, 1), noise(40, 90, 2)],
    "three images": [noise(56, 56, 1), noise(40, 90, 2), noise(200, 31, 3)],
    "a video": [Video(FRAMES)],
    "an image and a video": [noise(130, 60), Video(list(FRAMES))],
}


@dataclass(frozen=True)
class Parts:
    model: LacoForConditionalGeneration
    processor: LacoProcessor

    @property
    def layout(self) -> TokenLayout:
        layout: TokenLayout = self.model.config.token_layout
        return layout

    @property
    def newline(self) -> Any:
        vector = self.model.model.image_newline
        return None if vector is None else vector.detach().numpy()


@pytest.fixture(scope="module", params=LAYOUTS)
def parts(request: pytest.FixtureRequest) -> Parts:
    values = random_config(vocab_size=len(TOKENIZER)).to_dict()
    image = TOKENIZER.convert_tokens_to_ids(IMAGE_TOKEN)
    own = LacoConfig.from_dict({**values, "image_token_id": image, **LAYOUTS[request.param]})
    return Parts(random_model(own, seed=1), LacoProcessor.from_config(own, TOKENIZER, SPEC))


def trained_batch(processor: LacoProcessor, sources: list[VisualSource]) -> Any:
    """What training makes of a prompt."""
    kinds = ["video" if isinstance(one, Video) else "image" for one in sources]
    content: list[Any] = [*({"type": kind} for kind in kinds), {"type": "text", "text": QUESTION}]
    messages: list[Any] = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [one for one in sources if not isinstance(one, Video)]
    videos = [list(one.source) for one in sources if isinstance(one, Video)]
    return processor([images], [text], [videos], return_tensors="pt")


@pytest.mark.parametrize("sources", PROMPTED.values(), ids=PROMPTED)
def test_pixels_ids_tokens_and_logits_are_those_of_training(
    parts: Parts, sources: list[VisualSource]
) -> None:
    model, layout = parts.model, parts.layout
    batch = trained_batch(parts.processor, sources)
    found = read_visuals(sources, SPEC, layout)

    pixels = [pixel_values(part.squares, SPEC) for part in found]
    assert np.array_equal(np.concatenate(pixels), batch["pixel_values"].numpy())
    assert [part.tiles for part in found] == batch["num_tiles"].tolist()

    tokenizer: Tokenizer = TOKENIZER.backend_tokenizer
    template = chatml(tokenizer, image_token_id=model.config.image_token_id)
    turn = template.turn(encode_text(tokenizer, QUESTION), [part.tokens for part in found])
    ids = [*template.system, *turn]
    assert batch["input_ids"].tolist() == [ids]

    with torch.no_grad():
        output = model.model.get_image_features(
            **{name: batch.get(name) for name in ("pixel_values", "image_sizes", "num_tiles")},
            is_video=batch.get("is_video"),
            return_dict=True,
        )
        features = [model.get_image_features(torch.from_numpy(one)).numpy() for one in pixels]
        expected = model(**batch).logits[0, -1].numpy()
    visual = [
        arrange(one, part, layout, parts.newline) for one, part in zip(features, found, strict=True)
    ]
    for ours, theirs in zip(visual, output.pooler_output, strict=True):
        assert_close(ours, theirs.numpy())

    embeds = model.get_input_embeddings()(torch.tensor(ids)).detach().numpy()
    embeds = splice(embeds, ids, np.concatenate(visual), model.config.image_token_id)
    with torch.no_grad():
        logits = model(inputs_embeds=torch.from_numpy(embeds)[None]).logits[0, -1].numpy()
    assert_close(logits, expected, 1e-3)


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    newline=st.booleans(),
    max_tiles=st.integers(1, 12),
)
def test_any_image_is_arranged_as_pytorch_does(
    height: int, width: int, grid: tuple[int, int], newline: bool, max_tiles: int
) -> None:
    layout = TokenLayout(image_size=28, merged_grid=grid, newline=newline, max_tiles=max_tiles)
    rows, columns = select_grid((height, width), 28)
    visual = Visual(1 + rows * columns, (height, width))
    random = np.random.default_rng(height * 1000 + width)
    features = random.normal(size=(visual.num_tiles, grid[0] * grid[1], 3)).astype(np.float32)
    vector = random.normal(size=3).astype(np.float32) if newline else None
    tensor = None if vector is None else torch.from_numpy(vector)
    (expected,) = assemble(torch.from_numpy(features), [visual], layout, tensor)
    found = arrange_tiles(features, (height, width), layout, vector)
    assert_close(found, expected.numpy())


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 6),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stride=st.integers(1, 10),
    newline=st.booleans(),
)
def test_any_video_is_arranged_as_pytorch_does(
    frames: int, grid: tuple[int, int], stride: int, newline: bool
) -> None:
    layout = TokenLayout(image_size=28, merged_grid=grid, newline=newline, video_pool_stride=stride)
    random = np.random.default_rng(frames)
    features = random.normal(size=(frames, grid[0] * grid[1], 3)).astype(np.float32)
    vector = random.normal(size=3).astype(np.float32) if newline else None
    tensor = None if vector is None else torch.from_numpy(vector)
    visual = Visual(frames, (9, 9), is_video=True)
    (expected,) = assemble(torch.from_numpy(features), [visual], layout, tensor)
    found = arrange_tiles(features, (9, 9), layout, vector, is_video=True)
    assert_close(found, expected.numpy())


def test_the_largest_grids_are_arranged_at_full_size() -> None:
    layout = TokenLayout(image_size=448, merged_grid=(16, 16), newline=True)
    vector = np.full(8, 7, np.float32)
    for rows, columns in ((6, 6), (1, 6), TILE_GRIDS[7]):
        size = rows * 448, columns * 448
        random = np.random.default_rng(rows)
        features = random.normal(size=(1 + rows * columns, 256, 8)).astype(np.float32)
        visual = Visual(len(features), size)
        (expected,) = assemble(
            torch.from_numpy(features), [visual], layout, torch.from_numpy(vector)
        )
        found = arrange_tiles(features, size, layout, vector)
        assert_close(found, expected.numpy())
        assert len(found) == layout.image_tokens(size, len(features))


@pytest.mark.parametrize("wanted", [{"fps": 2}, {"frames": 7}])
def test_frames_of_a_file_are_those_of_training(tmp_path: Path, wanted: dict[str, Any]) -> None:
    path = tmp_path / "film.avi"
    write_video(path, range(0, 250, 5), fps=10)
    trained = read_frames(
        path, max_frames=wanted.get("frames", 99), fps=wanted.get("fps", 99), prepare=np.asarray
    )
    found = Video(path, **wanted).read(np.asarray)
    assert len(found) == len(trained) > 5
    assert all(np.array_equal(one, other) for one, other in zip(found, trained, strict=True))
