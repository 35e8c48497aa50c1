"""Drafts of prompt lookup: what is guessed from what was said before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laco_runtimes.engines.base import Capabilities
from laco_runtimes.errors import ArgumentError
from laco_runtimes.lookup import LENGTHS, PromptLookup, check_lookup
from laco_runtimes.settings import Settings

IMAGE = 9


def lookup(ids: list[int], most: int = 8) -> PromptLookup:
    found = PromptLookup(ids, most, image_token_id=IMAGE)
    for _ in range(5):
        found.learn(1, 1)  # whole drafts were right
    return found


def test_what_followed_the_same_words_is_the_draft() -> None:
    assert lookup([1, 2, 3, 4, 5, 1, 2]).draft(3) == [3, 4, 5]


def test_the_answer_itself_is_looked_through_too() -> None:
    drafts = lookup([1, 2])
    for token in (3, 4, 1, 2):
        drafts.accept(token)
    assert drafts.draft(8) == [3, 4, 1, 2]


def test_more_words_that_agree_win_over_later_ones() -> None:
    assert lookup([1, 2, 3, 4, 7, 3, 4, 5, 1, 2, 3, 4]).draft(1) == [7]
    assert lookup([3, 4, 7, 3, 4, 5, 8, 3, 4]).draft(1) == [5]


@pytest.mark.parametrize("ids", [[], [1], [1, 2], [1, 1], [1, 2, 3, 1, 3], [1, 2, 1]])
def test_there_is_no_draft_without_two_words_that_agree(ids: list[int]) -> None:
    assert lookup(ids).draft(8) == []


def test_places_of_images_neither_match_nor_are_drafted() -> None:
    assert lookup([IMAGE] * 20).draft(8) == []
    assert lookup([1, IMAGE, 2, 5, 1, IMAGE, 2]).draft(8) == []
    assert lookup([1, 2, 3, IMAGE, IMAGE, 1, 2]).draft(8) == [3]
    assert lookup([1, 2, IMAGE, 1, 2]).draft(8) == []


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_no_draft_is_longer_than_asked_for(most: int) -> None:
    ids = [*range(20, 90), 20, 21]
    assert lookup(ids, 64).draft(most) == list(range(22, 90))[: min(most, 64)]
    assert len(lookup(ids, most).draft(64)) == most
    assert lookup(ids, most).draft(0) == []


def test_drafts_grow_while_they_are_right_and_shrink_when_wrong() -> None:
    drafts = PromptLookup([*range(90), 0, 1], 8)
    lengths = []
    for right in (2, 4, 8, 3, 4, 1, 2):
        size = len(drafts.draft(64))
        lengths.append(size)
        drafts.learn(size, right)
    assert lengths == [2, 4, 8, 8, 4, 8, 2]


def test_pauses_double_while_drafts_are_all_wrong_and_end_with_one_that_is_not() -> None:
    drafts = PromptLookup([*range(90), 0, 1], 8)

    def pause() -> int:
        steps = 0
        while not drafts.draft(64):
            steps += 1
        return steps

    pauses = [pause()]
    for right in (0, 0, 0, 0, 0, 0, 1, 0):
        drafts.learn(2, right)
        pauses.append(pause())
    assert pauses == [0, 1, 2, 4, 8, 16, 16, 0, 1]


@given(ids=st.lists(st.integers(0, 4) | st.just(IMAGE), max_size=60), most=st.integers(1, 10))
def test_a_draft_is_a_piece_of_the_text_behind_the_same_words(ids: list[int], most: int) -> None:
    draft = lookup(ids, 10).draft(most)
    # Where the last words stand further up, longest match first and latest place first.
    for length in LENGTHS:
        tail = ids[-length:]
        if len(tail) < length or IMAGE in tail:
            continue
        ends = [e for e in range(length, len(ids)) if ids[e - length : e] == tail]
        if ends:
            expected = ids[ends[-1] : ends[-1] + most]
            cut = expected.index(IMAGE) if IMAGE in expected else len(expected)
            assert draft == expected[:cut]
            return
    assert draft == []


@pytest.mark.parametrize(
    ("scores", "rewinds", "word"), [(False, True, "logits"), (True, False, "rewind")]
)
def test_an_engine_that_cannot_check_a_draft_refuses(
    scores: bool, rewinds: bool, word: str
) -> None:
    able = Capabilities(scores=scores, rewinds=rewinds, batches_tiles=True)
    with pytest.raises(ArgumentError, match=f"prompt_lookup.*{word}"):
        check_lookup(Settings(prompt_lookup=4), able)
    check_lookup(Settings(), able)
    check_lookup(
        Settings(prompt_lookup=4), Capabilities(scores=True, rewinds=True, batches_tiles=False)
    )
