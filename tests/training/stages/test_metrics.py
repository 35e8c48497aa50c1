"""Exact match and ANLS against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laco_deploy.training.metrics import anls, edit_distance, exact_match


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_edit_distance_of_known_pairs(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Paris", ["paris"], 1.0),
        ("  new   york ", ["New York"], 1.0),
        ("hallo", ["hello"], 0.8),  # one of five characters
        ("helo", ["hello"], 0.8),
        ("abcd", ["abxx"], 0.0),  # half is wrong: the threshold is reached
        ("abcde", ["abcxx"], 0.6),
        ("hallo", ["bonjour", "hello"], 0.8),  # the nearest counts
        ("", ["x"], 0.0),
        ("", [""], 1.0),
        ("x", [], 0.0),
    ],
)
def test_anls_of_known_pairs(answer: str, references: list[str], score: float) -> None:
    assert anls(answer, references) == pytest.approx(score)


def test_exact_match_ignores_case_and_white_space_alone() -> None:
    assert exact_match(" A  b", ["a B"]) == 1.0
    assert exact_match("a b.", ["a b"]) == 0.0
    assert exact_match("b", ["a", "b"]) == 1.0
