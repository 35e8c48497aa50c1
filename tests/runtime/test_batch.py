"""`chat_batch`: one prompt, many images, encoded together and answered one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from laco_runtimes.encoding import MAX_TILES
from laco_runtimes.engines.base import Capabilities
from laco_runtimes.errors import ArgumentError, ImageError
from laco_runtimes.pipeline import Pipeline
from tests.runtime.hashing import HashEngine

Loader = Callable[..., tuple[Pipeline, HashEngine]]


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (20, 10), (10 * n, 255 - 7 * n, n)) for n in range(count)]


def test_each_image_is_answered_as_if_alone(load_hashing: Loader) -> None:
    pipeline, engine = load_hashing()
    replies = pipeline.chat_batch(pictures(5), "What?", max_new_tokens=6)
    assert engine.tiles == [5]
    alone, _ = load_hashing()
    assert [reply.text for reply in replies] == [
        alone.chat(picture, "What?", max_new_tokens=6).text for picture in pictures(5)
    ]
    assert len({reply.text for reply in replies}) == 5
    assert all(reply.visual_tokens == 4 for reply in replies)
    assert replies[1].cached_tokens == len(
        pipeline.facts.prompt.system + pipeline.facts.prompt.user_open
    )


def test_times_of_a_batch_hold_each_images_share(load_hashing: Loader) -> None:
    pipeline, _ = load_hashing()
    for reply in pipeline.chat_batch(pictures(4), "What?"):
        times = reply.timings
        assert times.vision_encode_ms > 0
        assert times.preprocess_ms > 0
        assert times.request_ms >= times.ttft_ms - 1e-3
        assert times.ttft_ms == pytest.approx(
            times.preprocess_ms + times.vision_encode_ms + times.embed_ms + times.prefill_ms
        )


def test_a_long_list_is_encoded_in_groups(load_hashing: Loader) -> None:
    pipeline, engine = load_hashing(feature_cache_bytes=0)
    images = [[one, one] if n == 3 else one for n, one in enumerate(pictures(MAX_TILES + 6))]
    replies = pipeline.chat_batch(images, "What?", max_new_tokens=2)
    assert [reply.visual_tokens for reply in replies] == [
        8 if n == 3 else 4 for n in range(MAX_TILES + 6)
    ]
    # Two that are the same are encoded once, but count for the size of their group.
    assert engine.tiles == [MAX_TILES - 1, 7]


def test_an_engine_that_takes_tiles_one_by_one_gets_them_so(load_hashing: Loader) -> None:
    able = Capabilities(scores=False, rewinds=True, batches_tiles=False)
    pipeline, engine = load_hashing(HashEngine(capabilities=able))
    pipeline.chat_batch(pictures(3), "What?", max_new_tokens=2)
    assert engine.tiles == [1, 1, 1]


def test_settings_hold_for_each_answer(load_hashing: Loader) -> None:
    pipeline, _ = load_hashing()
    one, other = (
        pipeline.chat_batch(pictures(3), "What?", temperature=1.0, seed=7, max_new_tokens=6)
        for _ in range(2)
    )
    assert [reply.tokens for reply in one] == [reply.tokens for reply in other]
    with pytest.raises(ArgumentError, match="temperature"):
        pipeline.chat_batch(pictures(3), "What?", temperature=-1.0)


def test_no_images_have_no_answers_and_none_is_text_alone(load_hashing: Loader) -> None:
    pipeline, engine = load_hashing()
    assert pipeline.chat_batch([], "What?") == []
    (reply,) = pipeline.chat_batch([None], "What?")
    assert reply.visual_tokens == 0
    assert engine.tiles == []


def test_a_bad_image_is_named_by_its_number(load_hashing: Loader) -> None:
    pipeline, _ = load_hashing()
    bad: list[Any] = [*pictures(2), np.zeros((2, 2), np.uint8)]
    with pytest.raises(ImageError) as raised:
        pipeline.chat_batch(bad, "What?")
    assert raised.value.__notes__ == ["It is image 3 of 3."]
    assert len(pipeline.chat_batch(pictures(2), "What?")) == 2
