"""The cache of visual tokens: what goes first, what counts, and that threads do not mix it up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laco_runtimes.errors import ArgumentError
from laco_runtimes.feature_cache import FeatureCache

ROW = 4 * 8  # bytes of one visual token of width 8


def features(tokens: int, value: float = 0.0) -> np.ndarray:
    return np.full((tokens, 8), value, np.float32)


def test_what_was_put_comes_back_for_its_variant_alone() -> None:
    cache = FeatureCache()
    cache.put(b"a", "laco", features(3, 1.0))
    found = cache.get(b"a", "laco")
    assert found is not None
    assert found.tolist() == features(3, 1.0).tolist()
    assert cache.get(b"a", "uncompressed") is None
    assert cache.get(b"b", "laco") is None
    assert (cache.hits, cache.misses, len(cache), cache.bytes) == (1, 2, 1, 3 * ROW)


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = FeatureCache(max_bytes=3 * ROW)
    for name in (b"a", b"b", b"c"):
        cache.put(name, "laco", features(1))
    cache.get(b"a", "laco")
    cache.put(b"d", "laco", features(1))
    kept = [name for name in (b"a", b"b", b"c", b"d") if cache.get(name, "laco") is not None]
    assert kept == [b"a", b"c", b"d"]


def test_what_is_larger_than_the_budget_is_not_kept_and_drives_nothing_out() -> None:
    cache = FeatureCache(max_bytes=2 * ROW)
    cache.put(b"a", "laco", features(1))
    assert len(cache.put(b"b", "laco", features(3))) == 3
    assert cache.get(b"a", "laco") is not None
    assert cache.get(b"b", "laco") is None


def test_a_budget_of_0_keeps_nothing() -> None:
    cache = FeatureCache(0)
    cache.put(b"a", "laco", features(1))
    assert (len(cache), cache.bytes) == (0, 0)


@pytest.mark.parametrize("bad", [-1, True])
def test_a_budget_that_is_none_is_refused(bad: int) -> None:
    with pytest.raises(ArgumentError, match="bytes"):
        FeatureCache(bad)


def test_a_slice_is_kept_without_the_array_it_is_of_and_cannot_be_written() -> None:
    whole = features(1000, 5.0)
    kept = FeatureCache().put(b"a", "laco", whole[:2])
    whole[:] = 0
    assert kept.base is None
    assert kept.tolist() == features(2, 5.0).tolist()
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1


@given(
    puts=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=40),
    budget=st.integers(0, 12),
)
def test_the_budget_holds_and_the_count_of_bytes_is_right(
    puts: list[tuple[int, int]], budget: int
) -> None:
    cache, last = FeatureCache(budget * ROW), {}
    for name, tokens in puts:
        last[name] = tokens
        cache.put(bytes([name]), "laco", features(tokens))
        assert cache.bytes <= budget * ROW
    held = {name: cache.get(bytes([name]), "laco") for name in last}
    assert cache.bytes == sum(one.nbytes for one in held.values() if one is not None)
    assert cache.bytes == ROW * sum(last[name] for name, one in held.items() if one is not None)


def test_threads_find_what_they_put_and_the_count_stays_right() -> None:
    cache = FeatureCache(max_bytes=20 * ROW)

    def work(seed: int) -> int:
        random, wrong = np.random.default_rng(seed), 0
        for _ in range(300):
            name = int(random.integers(40))
            found = cache.get(bytes([name]), "laco")
            if found is None:
                cache.put(bytes([name]), "laco", features(1 + name % 3, name))
            else:
                wrong += bool((found != name).any())
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    assert cache.hits + cache.misses == 8 * 300
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
