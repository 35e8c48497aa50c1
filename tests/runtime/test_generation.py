"""The generation loop, splicing and detokenisation, with a fake model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from laco_runtimes.errors import EngineError
from laco_runtimes.generation import Detokenizer, StopStrings, Token, generate, greedy, splice
from laco_runtimes.settings import Settings
from tests.runtime.talker import Rule, Talker

PROMPT = [0, 0, 0]
# Function-scoped fixtures that hold no state of their own.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def count(ids: Sequence[int]) -> int:
    return (ids[-1] + 1) % 100


def parrot(ids: Sequence[int]) -> int:
    """Repeats a phrase of seven tokens."""
    return 10 + (len(ids) % 7)


def start(
    model: Talker, stop: Sequence[int], limit: int, ids: Sequence[int] = PROMPT, **values: Any
) -> Generator[Token, None, None]:
    return generate(model, model.embed(ids), ids, stop, Settings(**values), limit)


def answer(model: Talker, stop: Sequence[int], limit: int, **values: Any) -> list[int]:
    return [token.id for token in start(model, stop, limit, **values)]


def test_answer_ends_with_its_stop_id_and_no_step_follows() -> None:
    model = Talker(count)
    assert answer(model, (4, 9), 50) == [1, 2, 3, 4]
    assert model.names == ["prefill", "step", "step", "step"]
    assert model.cached == [*PROMPT, 1, 2, 3]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_limit_is_kept_and_the_last_token_is_not_stepped(limit: int) -> None:
    model = Talker(count)
    assert answer(model, (), limit) == list(range(1, limit + 1))
    assert model.names == ["prefill", *["step"] * (limit - 1)]
    assert model.cached == [*PROMPT, *range(1, limit)]


def test_nothing_runs_before_the_first_token_is_asked_for() -> None:
    model = Talker(count)
    start(model, (), 5)
    assert model.calls == []


def test_one_step_per_token_and_none_after_close() -> None:
    model = Talker(count)
    tokens = start(model, (), 50)
    assert [next(tokens).id, next(tokens).id] == [1, 2]
    tokens.close()
    assert model.names == ["prefill", "step"]


def test_prefill_is_of_the_embeddings_given_and_penalty_of_all_ids() -> None:
    ids = [5, 8, 7]  # after 7 it says 8, which is in the part of the prompt that is cached
    said = []
    for penalty in (1.0, 1e9):
        model = Talker(count, noise=1)
        model.prefill(model.embed(ids[:2]))
        settings = Settings(repetition_penalty=penalty)
        said += [token.id for token in generate(model, model.embed([7]), ids, (), settings, 1)]
        assert model.cached == ids
    assert said[0] == 8
    assert said[1] not in ids


def test_a_seed_gives_the_same_answer_and_another_seed_another_one() -> None:
    def said(seed: int | None) -> list[int]:
        return answer(Talker(count, noise=3), (), 30, temperature=1.0, seed=seed)

    assert said(5) == said(5)
    assert said(5) != said(6)
    assert said(None) != said(None)


def test_penalty_keeps_an_answer_from_going_round() -> None:
    model = Talker(lambda ids: 7, noise=1)
    assert answer(model, (), 3) == [7, 7, 7]
    said = answer(Talker(lambda ids: 7, noise=1), (), 20, repetition_penalty=100.0)
    assert said.count(7) == 1


def test_log_probabilities_come_with_each_token_and_add_up() -> None:
    model = Talker(lambda ids: ids[-1] + 1, vocabulary=8, noise=0)
    tokens = list(start(model, (), 4, logprobs=8))
    assert len(tokens) == 4
    for token in tokens:
        assert token.alternatives is not None
        assert dict(token.alternatives)[token.id] == token.logprob
        chances = [math.exp(value) for _, value in token.alternatives]
        assert sum(chances) == pytest.approx(1, rel=1e-5)
        assert chances == sorted(chances, reverse=True)


@pytest.mark.parametrize(("asked", "given"), [(None, None), (0, ()), (1, 1)])
def test_as_many_alternatives_as_asked_for(asked: int | None, given: object) -> None:
    token = next(start(Talker(count, noise=0), (), 1, logprobs=asked))
    assert (token.logprob is None) == (asked is None)
    found = token.alternatives if asked != 1 else len(token.alternatives or ())
    assert found == given


LOOKUPS: dict[str, Any] = {"prompt_lookup": 8}


@pytest.mark.parametrize(
    "rule", [count, parrot, lambda ids: 10 + (len(ids) % 7 if len(ids) % 11 else 9)]
)
@pytest.mark.parametrize("limit", [1, 2, 3, 10, 41])
def test_prompt_lookup_changes_no_answer(rule: Rule, limit: int) -> None:
    plain, fast = Talker(rule, 200), Talker(rule, 200)
    expected = answer(plain, (), limit)
    assert answer(fast, (), limit, **LOOKUPS) == expected
    assert fast.cached == plain.cached


@shared
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    seed=st.integers(0, 20),
    most=st.integers(1, 9),
    stop=st.sampled_from([(), (2,)]),
    penalty=st.sampled_from([1.0, 1.3]),
    taken=st.integers(1, 25),
)
def test_prompt_lookup_is_step_by_step_decoding_wherever_it_ends(
    prompt: list[int], seed: int, most: int, stop: tuple[int, ...], penalty: float, taken: int
) -> None:
    def talk(**values: Any) -> tuple[list[Token], list[int]]:
        # A small vocabulary and a rule that looks two tokens back repeats itself soon.
        model = Talker(lambda ids: (ids[-1] + sum(ids[-2:])) % 4, vocabulary=4, noise=seed)
        tokens = start(
            model, stop, 25, ids=prompt, repetition_penalty=penalty, logprobs=1, **values
        )
        found = list(itertools.islice(tokens, taken))
        tokens.close()
        return found, model.cached

    assert talk(prompt_lookup=most) == talk()


def test_prompt_lookup_saves_passes_where_the_text_repeats() -> None:
    model = Talker(parrot)
    answer(model, (), 60, **LOOKUPS)
    passes = [name for name in model.names if name in ("step", "score")]
    assert len(passes) <= 25


def test_a_stop_id_inside_a_draft_ends_the_answer() -> None:
    ids = [1, 2, 3, 4, 5, 1, 2, 3]
    model = Talker(lambda ids: ids[-5])
    tokens = start(model, (5,), 20, ids=ids, **LOOKUPS)
    assert [token.id for token in tokens] == [4, 5]
    assert model.cached == [*ids, 4]


def test_an_image_token_is_never_drafted() -> None:
    image = 99
    ids = [1, 2, image, image, image, image, 1, 2]
    model = Talker(lambda ids: 1 if ids[-1] != 1 else 2)
    list(generate(model, model.embed(ids), ids, (), Settings(**LOOKUPS), 12, image_token_id=image))
    assert image not in model.cached[len(ids) :]
    assert "score" in model.names


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


def stopped(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, str | None]:
    held = StopStrings(stops)
    return "".join([*map(held.push, pieces), held.finish()]), held.found


def expected_stop(stops: Sequence[str], text: str) -> tuple[str, str | None]:
    """Letter by letter: the first moment at which the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=6), max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_strings_end_a_text_in_the_same_place_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    assert stopped(stops, pieces) == expected_stop(stops, text)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["</s>", "END"])
    assert [stops.push(piece) for piece in ("ab<", "/", "x", "E", "N", "N", "</s>y")] == [
        "ab",
        "",
        "</x",
        "",
        "",
        "ENN",
        "",
    ]
    assert (stops.found, stops.push("more"), stops.finish()) == ("</s>", "", "")


def test_without_stop_strings_nothing_is_held_back() -> None:
    stops = StopStrings(())
    assert [stops.push("a"), stops.push(""), stops.finish(), stops.found] == ["a", "", "", None]
