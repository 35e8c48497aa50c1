"""The generation loop, splicing and detokenisation, with a fake model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from laco_runtimes.engines.base import Floats
from laco_runtimes.errors import EngineError
from laco_runtimes.generation import Detokenizer, generate, greedy, splice

PROMPT = np.zeros((3, 2), np.float32)  # [sequence, D]
# Function-scoped fixtures that hold no state of their own.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


class Counter:
    """Says 1, 2, 3, ... and counts its calls."""

    def __init__(self) -> None:
        self.prefills = 0
        self.steps: list[int] = []
        self.length = 0

    def embed(self, ids: Sequence[int]) -> Floats:
        raise NotImplementedError

    def prefill(self, embeds: Floats) -> Floats:
        self.prefills += 1
        return self._logits(1)

    def step(self, token: int) -> Floats:
        self.steps.append(token)
        return self._logits(token + 1)

    def rewind(self, length: int) -> None:
        raise NotImplementedError

    def _logits(self, token: int) -> Floats:
        return np.eye(100, dtype=np.float32)[token]


def test_answer_ends_with_its_stop_id_and_no_step_follows() -> None:
    model = Counter()
    assert list(generate(model, PROMPT, (4, 9), 50)) == [1, 2, 3, 4]
    assert model.steps == [1, 2, 3]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_limit_is_kept_and_the_last_token_is_not_stepped(limit: int) -> None:
    model = Counter()
    assert list(generate(model, PROMPT, (), limit)) == list(range(1, limit + 1))
    assert model.steps == list(range(1, limit))
    assert model.prefills == 1


def test_nothing_runs_before_the_first_token_is_asked_for() -> None:
    model = Counter()
    generate(model, PROMPT, (), 5)
    assert model.prefills == 0


def test_one_step_per_token_and_none_after_close() -> None:
    model = Counter()
    tokens = generate(model, PROMPT, (), 50)
    assert [next(tokens), next(tokens)] == [1, 2]
    tokens.close()  # type: ignore[attr-defined]
    assert model.steps == [1]


def test_another_selection_can_be_given() -> None:
    def second_best(logits: Floats) -> int:
        return int(np.argsort(-logits, kind="stable")[1])

    assert list(generate(Counter(), PROMPT, (), 2, select=second_best)) == [0, 0]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert greedy(np.array([0, 3, 3, 1], np.float32)) == 1


@pytest.mark.parametrize("bad", [[np.nan, 1, 2], [1, 2, np.nan], [np.nan] * 3])
def test_greedy_refuses_logits_that_are_not_numbers(bad: list[float]) -> None:
    with pytest.raises(EngineError, match="NaN"):
        greedy(np.array(bad, np.float32))


def test_splice_puts_visual_tokens_in_order_and_changes_nothing_else() -> None:
    embeds = np.zeros((6, 2), np.float32)
    features = np.arange(1, 9, dtype=np.float32).reshape(2, 2, 2)  # [tiles, N', D]
    spliced = splice(embeds, [7, 5, 7, 7, 5, 7], features, 7)
    assert spliced.tolist() == [[1, 2], [0, 0], [3, 4], [5, 6], [0, 0], [7, 8]]
    assert not embeds.any()


@pytest.mark.parametrize("ids", [[7, 5], [7, 7, 7]])
def test_splice_refuses_another_number_of_visual_tokens(ids: list[int]) -> None:
    with pytest.raises(EngineError, match="2 visual tokens"):
        splice(np.zeros((len(ids), 2), np.float32), ids, np.ones((1, 2, 2), np.float32), 7)


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    text = Detokenizer(tokenizer)
    return [*(text.push(token) for token in ids), text.finish()]


@shared
@given(text=st.text())
def test_pieces_join_to_the_text_and_hold_no_half_character(
    tokenizer: Tokenizer, text: str
) -> None:
    text = text.replace("\ufffd", "")
    pieces = pieces_of(tokenizer, tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@shared
@given(ids=st.lists(st.integers(0, 259), max_size=20))
def test_any_ids_give_what_decoding_them_at_once_gives(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces_of(tokenizer, ids)) == whole.rstrip("\ufffd")


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀b").ids
    assert pieces_of(tokenizer, ids) == ["a", "", "", "", "😀", "b", ""]


def test_a_character_cut_off_by_the_limit_is_left_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀").ids
    assert "".join(pieces_of(tokenizer, ids[:-1])) == "a"
