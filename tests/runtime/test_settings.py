"""Settings of a request: what is taken, what is refused, and by which name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from laco_runtimes.errors import ArgumentError
from laco_runtimes.settings import MAX_STOP_STRINGS, Settings

INF, NAN = float("inf"), float("nan")


def test_default_is_greedy_without_anything_else() -> None:
    settings = Settings()
    assert settings.greedy
    assert (settings.stops, settings.logprobs, settings.prompt_lookup) == ((), None, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_new_tokens", bad) for bad in (0, -1, 1.0, "5", True, None)),
        *(("temperature", bad) for bad in (-0.1, 1e-4, NAN, INF, "1", None, True, 1 + 1j)),
        *(("top_k", bad) for bad in (-1, 1.5, True, None)),
        *(("top_p", bad) for bad in (0, -0.5, 1.01, NAN, "1", None)),
        *(("min_p", bad) for bad in (-0.01, 1.01, NAN, None)),
        *(("repetition_penalty", bad) for bad in (0, -1, INF, NAN, None)),
        *(("seed", bad) for bad in (-1, 2**64, 0.5, "0", True)),
        *(("stop", bad) for bad in ("", ("a", ""), (1,), 5, None, b"x", "x" * 1001)),
        ("stop", ("a",) * (MAX_STOP_STRINGS + 1)),
        *(("logprobs", bad) for bad in (-1, 101, True, 1.5)),
        *(("prompt_lookup", bad) for bad in (-1, 65, True, 2.0, None)),
        ("top_p", 10**400),
    ],
)
def test_bad_value_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"^{field} is .*\. Give "):
        Settings(**{field: value})


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": np.int64(3), "seed": np.uint64(2**64 - 1), "top_k": np.int32(2)},
        {"temperature": np.float32(0.5), "top_p": 1, "min_p": 1, "repetition_penalty": 2},
        {"stop": ["a", "bc"], "logprobs": 0, "seed": None},
    ],
)
def test_numbers_of_numpy_and_edges_of_ranges_are_taken(values: dict[str, Any]) -> None:
    Settings(**values)


def test_one_stop_string_and_a_list_become_a_tuple() -> None:
    assert Settings(stop="END").stop == ("END",)
    assert Settings(stop=["a", "b"]).stops == ("a", "b")  # type: ignore[arg-type]


def test_prompt_lookup_with_sampling_is_refused() -> None:
    with pytest.raises(ArgumentError, match="prompt_lookup"):
        Settings(prompt_lookup=4, temperature=0.7)


def test_long_bad_value_is_cut_in_the_message() -> None:
    with pytest.raises(ArgumentError) as error:
        Settings(stop=("x" * 5000,))
    assert len(str(error.value)) < 300


def test_settings_are_frozen_and_named() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().top_k = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Settings(5)  # type: ignore[call-arg]
