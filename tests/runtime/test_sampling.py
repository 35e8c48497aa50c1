"""Sampling against the plain definition: sort everything, cut, draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from laco_runtimes import sampling
from laco_runtimes.engines.base import Floats
from laco_runtimes.errors import EngineError
from laco_runtimes.sampling import Sampler, likeliest, log_probabilities
from laco_runtimes.settings import Settings

QWEN = 151_936


class Chance:
    """A random number generator that says what it is told."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def pick(logits: Floats, chance: float, settings: Settings, seen: tuple[int, ...] = ()) -> int:
    sampler = Sampler(settings, seen)
    sampler._random = Chance(chance)  # type: ignore[assignment]
    return sampler.pick(logits)


def left(logits: Floats, settings: Settings) -> tuple[list[int], list[float]]:
    """Ids that can be drawn, likeliest first, and their probabilities."""
    order = np.argsort(-logits, kind="stable")[: settings.top_k or None]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / settings.temperature)
    chances = weights / weights.sum()
    kept = (
        int(np.searchsorted(np.cumsum(chances), settings.top_p)) + 1
        if settings.top_p < 1
        else len(order)
    )
    if settings.min_p:
        kept = min(kept, int((weights >= settings.min_p).sum()))
    chances = chances[:kept] / chances[:kept].sum()
    return order[:kept].tolist(), chances.tolist()


SETTINGS = st.builds(
    Settings,
    temperature=st.sampled_from([0.2, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 70, 2000]),
    # Of equal tokens, none of these is a whole number: rounding would decide on the last one.
    top_p=st.sampled_from([1.0, 0.93713, 0.51137, 0.010713]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    settings=SETTINGS,
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 2, 63, 64, 130, 1000, 2500]),
    spread=st.sampled_from([0.0, 0.3, 3.0, 20.0]),
    head=st.sampled_from([1, 3, 40, 512]),
)
def test_each_token_is_drawn_as_often_as_by_definition(
    settings: Settings, seed: int, size: int, spread: float, head: int
) -> None:
    random = np.random.default_rng(seed)
    logits = (spread * random.standard_normal(size)).astype(np.float32)
    ids, chances = left(logits, settings)
    edges = np.cumsum(chances)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "HEAD", head)  # so that small vocabularies take every way there is
        patch.setattr(sampling, "GROWTH", 3)
        for chance in random.random(10):
            if np.abs(edges - chance).min() > 1e-5:  # else rounding decides
                place = int(np.searchsorted(edges, chance, side="right"))
                assert pick(logits, chance, settings) == ids[place]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.2},
        {"temperature": 2.0},
    ],
)
@pytest.mark.parametrize("spread", [1.0, 3.0, 8.0])
def test_a_vocabulary_of_full_size_is_drawn_from_by_definition(
    values: dict[str, Any], spread: float
) -> None:
    random = np.random.default_rng(1)
    logits = (spread * random.standard_normal(QWEN)).astype(np.float32)
    settings = Settings(**values)
    ids, chances = left(logits, settings)
    edges = np.cumsum(chances)
    for chance in (0.0, 0.1, 0.5, 0.9, 0.99):
        near = np.searchsorted(edges, [chance - 1e-5, chance + 1e-5], side="right")
        allowed = ids[near[0] : near[1] + 1]
        assert pick(logits, chance, settings) in allowed


def test_drawn_tokens_are_spread_as_their_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampler = Sampler(Settings(temperature=1.0, seed=0), ())
    found = np.bincount([sampler.pick(logits) for _ in range(8000)], minlength=4) / 8000
    assert found == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.02)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("values", [{}, {"top_k": 2}, {"top_p": 0.999}, {"min_p": 0.001}])
def test_impossible_tokens_are_never_drawn(chance: float, values: dict[str, Any]) -> None:
    logits = np.full(2000, -np.inf, np.float32)
    logits[[7, 1500]] = 1.0
    assert pick(logits, chance, Settings(temperature=1.0, **values)) in (7, 1500)


def test_same_seed_draws_the_same_tokens_and_another_seed_does_not() -> None:
    logits = np.zeros(1000, np.float32)

    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(Settings(temperature=1.0, seed=seed), ())
        return [sampler.pick(logits) for _ in range(10)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)


def test_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    sampler = Sampler(Settings(repetition_penalty=2.0), [0, 1])
    logits = np.array([3.0, -1.0, 2.0, -1.5], np.float32)
    assert sampler.pick(logits) == 2  # 1.5, -2, 2, -1.5
    sampler.accept(2)
    sampler.accept(2)
    assert sampler.pick(logits) == 0  # 1.5, -2, 1, -1.5: once, however often it was said
    sampler.accept(3)
    assert sampler.pick(np.array([-2.0, -1.0, -2.0, -1.1], np.float32)) == 1
    assert logits.tolist() == [3.0, -1.0, 2.0, -1.5]


def test_logits_of_the_engine_are_left_alone() -> None:
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    logits.setflags(write=False)
    for settings in (
        Settings(repetition_penalty=1.5),
        Settings(temperature=0.5, top_p=0.5, repetition_penalty=1.5),
    ):
        Sampler(settings, [1, 2]).pick(logits)
    log_probabilities(logits, 3, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "settings", [Settings(), Settings(temperature=1.0), Settings(temperature=1.0, top_k=1)]
)
def test_logits_that_are_not_numbers_are_refused(bad: float, settings: Settings) -> None:
    logits = np.zeros(500, np.float32)
    logits[321] = bad
    if settings.greedy and bad == np.inf:
        assert Sampler(settings, ()).pick(logits) == 321
    else:
        with pytest.raises(EngineError, match="not numbers"):
            Sampler(settings, ()).pick(logits)
    with pytest.raises(EngineError, match="not numbers"):
        log_probabilities(logits, 0, 0)


@pytest.mark.parametrize("size", [1, 5, 64, 100, 128, 1000, 5000])
def test_likeliest_is_the_head_of_a_stable_sort(size: int) -> None:
    random = np.random.default_rng(size)
    for logits in (
        random.standard_normal(size).astype(np.float32),
        random.integers(0, 3, size).astype(np.float32),  # many equals
        np.arange(size, dtype=np.float32),
    ):
        order = np.argsort(-logits, kind="stable")
        for count in {1, min(2, size), size // 2 or 1, size}:
            assert likeliest(logits, count).tolist() == order[:count].tolist()


def test_log_probabilities_are_a_log_softmax() -> None:
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 4 + 90
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    own, others = log_probabilities(logits, 17, 3)
    assert own == pytest.approx(exact[17], abs=1e-4)
    assert list(others) == np.argsort(-logits)[:3].tolist()
    assert list(others.values()) == pytest.approx(np.sort(exact)[::-1][:3].tolist(), abs=1e-4)
    assert log_probabilities(logits, 17, 0) == (own, {})
