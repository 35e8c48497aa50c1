"""One KV buffer that is written in place: the same logits, without a copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laco_runtimes.engines import onnxruntime_cache
from laco_runtimes.engines.base import Floats, LanguageModel
from laco_runtimes.engines.onnxruntime import open_language
from laco_runtimes.engines.onnxruntime_cache import SharedCache
from laco_runtimes.errors import EngineError
from laco_runtimes.graphs import DecoderForm, GraphSpec
from tests.export.flavour_engines import FACTS

Written = dict[str, tuple[Path, GraphSpec]]

PROMPT, TURN = 9, 5
EMBEDS: Floats = (
    np.random.default_rng(0).normal(0, 1, (PROMPT + TURN + 6, FACTS.hidden_size)).astype(np.float32)
)


@pytest.fixture
def language(flavours: Written) -> LanguageModel:
    return opened(flavours, "contrib")


def opened(flavours: Written, name: str) -> LanguageModel:
    from laco_runtimes.engines import onnxruntime as engine

    path, _ = flavours[name]
    form = DecoderForm(name)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:  # these tests give embeddings, so there is no table
        real = engine._open
        patch.setattr(
            engine, "_open", lambda file, *rest, **more: file and real(file, *rest, **more)
        )
        return open_language(path, None, FACTS, form)  # type: ignore[arg-type]


def cache_of(language: LanguageModel) -> SharedCache:
    cache = language._cache  # type: ignore[attr-defined]
    assert isinstance(cache, SharedCache)
    return cache


@pytest.mark.parametrize("other", ["stateful"])
def test_a_dialogue_has_the_logits_of_the_stateful_flavour(
    flavours: Written, language: LanguageModel, other: str
) -> None:
    """A prompt, two steps, a second turn behind them, a step."""
    reference, start = opened(flavours, other), 0
    for size in (PROMPT, 1, 1, TURN, 1):
        part = EMBEDS[start : start + size]
        np.testing.assert_allclose(
            language.prefill(part), reference.prefill(part), rtol=1e-4, atol=1e-4
        )
        start += size
        assert language.length == reference.length == start


def test_after_a_rewind_the_same_tokens_have_the_same_logits(language: LanguageModel) -> None:
    language.prefill(EMBEDS[:PROMPT])
    first = [language.prefill(EMBEDS[i : i + 1]) for i in range(PROMPT, PROMPT + 3)]
    language.rewind(PROMPT)
    language.prefill(EMBEDS[-4:])  # another answer, longer than the first
    language.rewind(PROMPT)
    again = [language.prefill(EMBEDS[i : i + 1]) for i in range(PROMPT, PROMPT + 3)]
    np.testing.assert_array_equal(first, again)
    language.rewind(0)
    assert language.length == 0


@pytest.mark.parametrize("name", ["contrib", "stateful", "concat"])
def test_scores_are_the_logits_of_one_token_after_the_other(flavours: Written, name: str) -> None:
    language = opened(flavours, name)
    language.embed = lambda ids: EMBEDS[list(ids)]  # type: ignore[method-assign]
    draft = range(PROMPT, PROMPT + 4)
    language.prefill(EMBEDS[:PROMPT])
    expected = [language.prefill(EMBEDS[i : i + 1]) for i in (*draft, PROMPT + 4)]
    language.rewind(PROMPT)
    np.testing.assert_allclose(language.score(draft), expected[:4], rtol=1e-4, atol=1e-4)
    after = language.prefill(EMBEDS[PROMPT + 4 : PROMPT + 5])
    np.testing.assert_allclose(after, expected[4], rtol=1e-4, atol=1e-4)
    assert language.length == PROMPT + 5


def test_nothing_is_copied_from_step_to_step_nor_by_a_rewind(language: LanguageModel) -> None:
    def places() -> list[int]:
        return [value.data_ptr() for value in cache_of(language)._values]

    language.prefill(EMBEDS[:PROMPT])
    before = places()
    language.prefill(EMBEDS[:1])
    language.rewind(2)
    language.prefill(EMBEDS[:TURN])
    assert places() == before
    bound = {one.data_ptr() for one in language._binding.get_outputs()[1:]}  # type: ignore[attr-defined]
    assert bound == set(before)


def test_a_buffer_that_grows_keeps_what_it_holds(
    flavours: Written, language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_cache, "FIRST_CAPACITY", 4)
    growing = opened(flavours, "contrib")
    capacities = []
    for end in (3, 4, 5, 9, 20):
        part = EMBEDS[growing.length : end]
        np.testing.assert_allclose(growing.prefill(part), language.prefill(part), atol=1e-5)
        capacities.append(cache_of(growing)._capacity)
    assert capacities == [4, 4, 8, 16, 32]


def test_more_tokens_than_positions_are_refused(language: LanguageModel) -> None:
    longest = FACTS.max_positions
    language.prefill(np.zeros((longest, FACTS.hidden_size), np.float32))
    with pytest.raises(EngineError, match=f"{longest + 1} tokens are more than the {longest}"):
        language.prefill(EMBEDS[:1])
    assert language.length == longest
    language.rewind(1)
    language.prefill(EMBEDS[:1])
