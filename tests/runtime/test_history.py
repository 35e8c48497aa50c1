"""Dialogues of several turns on an engine whose answer depends on every entry of its KV cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from laco_runtimes.engines.base import Capabilities
from laco_runtimes.errors import ArgumentError, ContextLengthError, EngineError, ImageError
from laco_runtimes.history import History
from laco_runtimes.pipeline import Pipeline
from tests.runtime.fakes import CONTEXT
from tests.runtime.hashing import HashEngine

RED, BLUE, GREY = (
    Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", (128, 128, 128))
)
Loader = Callable[..., tuple[Pipeline, HashEngine]]


@pytest.fixture
def loaded(load_hashing: Loader) -> tuple[Pipeline, HashEngine]:
    return load_hashing()


def fresh_answer(load: Loader, history: History, images: list[Any], prompt: str, **how: Any) -> str:
    """What a pipeline that has never seen anything says to the same dialogue."""
    pipeline, _ = load()
    return pipeline.chat(
        None, prompt, history=pipeline.new_history(history.to_json(), images), **how
    ).text


def test_a_history_is_laid_out_as_one_prompt(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    first = pipeline.chat(RED, "What?", history=history, max_new_tokens=4)
    second = pipeline.chat(None, "And?", history=history, max_new_tokens=4)
    template, prompt = pipeline.facts.prompt, list(b"What?")  # bytes are tokens, nearly
    ids = pipeline._runner.tokenizer.encode("What?").ids
    assert len(ids) == len(prompt)
    expected = [
        *template.system,
        *template.turn(ids, [4]),
        *(first.tokens[:-1] if first.stop_reason == "stop" else first.tokens),
        *template.assistant_close,
        *template.turn(pipeline._runner.tokenizer.encode("And?").ids),
    ]
    rows = [row[0] for row in engine.cached[: second.prompt_tokens]]
    assert second.prompt_tokens == len(expected)
    assert [max(row, -1) for row in rows] == [
        -1 if one == template.image_token_id else one for one in expected
    ]
    assert [(turn.prompt, turn.reply, turn.images) for turn in history.turns] == [
        ("What?", first.text, 1),
        ("And?", second.text, 0),
    ]


def test_turn_2_costs_its_new_tokens_alone_and_no_encoder(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    first = pipeline.chat(RED, "What?", history=history)
    assert (first.cached_tokens, first.prefilled_tokens) == (0, first.prompt_tokens)
    engine.calls.clear()
    engine.prefilled.clear()
    second = pipeline.chat(None, "x" * 20, history=history)

    template = pipeline.facts.prompt
    new = len(template.assistant_close) + len(template.user_open) + 20 + len(template.user_close)
    unstepped = first.stop_reason == "length"  # the last token was said but is not cached
    assert engine.prefilled == [new + unstepped] == [second.prefilled_tokens]
    assert second.cached_tokens == second.prompt_tokens - new - unstepped
    assert "encode" not in engine.calls
    assert engine.calls.count("embed") == 1
    assert second.visual_tokens == 4


def test_the_same_image_again_is_not_encoded_again(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, engine = loaded
    pipeline.chat(RED, "What?")
    pipeline.chat(BLUE, "What?")
    reply = pipeline.chat(np.asarray(RED), "And?")
    assert engine.calls.count("encode") == 2
    assert (pipeline.feature_cache.hits, pipeline.feature_cache.misses) == (1, 2)
    assert reply.cached_tokens == len(
        pipeline.facts.prompt.system + pipeline.facts.prompt.user_open
    )


def test_an_image_in_a_history_outlives_the_feature_cache(load_hashing: Loader) -> None:
    pipeline, engine = load_hashing(feature_cache_bytes=0)
    history = pipeline.new_history()
    pipeline.chat(RED, "What?", history=history)
    pipeline.chat(BLUE, "What?")  # takes the KV cache too
    reply = pipeline.chat(None, "And?", history=history)
    assert engine.calls.count("encode") == 2
    assert reply.text == fresh_answer(load_hashing, _without_last(history), [RED], "And?")


def _without_last(history: History) -> History:
    return History(history._template, history.owner, history.entries[:-1])


@pytest.mark.parametrize("rewinds", [True, False])
def test_ten_turns_say_what_ten_fresh_prompts_say(load_hashing: Loader, rewinds: bool) -> None:
    able = Capabilities(scores=True, rewinds=rewinds, batches_tiles=True)
    pipeline, _ = load_hashing(HashEngine(capabilities=able))
    history = pipeline.new_history()
    for turn in range(10):
        image = [RED, BLUE] if turn == 3 else GREY if turn == 0 else None
        saved = pipeline.new_history(history.to_json())
        reply = pipeline.chat(image, f"{turn}?", history=history, max_new_tokens=8)
        fresh, _ = load_hashing()
        old = fresh.new_history(saved.to_json(), [GREY, RED, BLUE])
        assert reply.text == fresh.chat(image, f"{turn}?", history=old, max_new_tokens=8).text
    assert len({past.reply for past in history.turns} - {""}) == 10


def test_two_dialogues_take_turns_and_do_not_mix(load_hashing: Loader) -> None:
    pipeline, _ = load_hashing()
    one, other = pipeline.new_history(), pipeline.new_history()
    alone, _ = load_hashing()
    expected = alone.new_history()
    for turn in range(5):
        pipeline.chat(RED if turn == 0 else None, f"{turn}", history=one, max_new_tokens=6)
        pipeline.chat(BLUE if turn == 0 else None, f"{turn}", history=other, max_new_tokens=6)
        alone.chat(RED if turn == 0 else None, f"{turn}", history=expected, max_new_tokens=6)
    assert one.to_json() == expected.to_json()
    assert one.to_json() != other.to_json()


def test_whole_oldest_turns_go_and_their_image_stays(load_hashing: Loader) -> None:
    pipeline, engine = load_hashing(HashEngine(lowest_stop=CONTEXT))
    history = pipeline.new_history()
    said = 0
    for turn in range(40):
        reply = pipeline.chat(
            RED if turn == 0 else None, f"question {turn:02}", history=history, max_new_tokens=12
        )
        said += reply.new_tokens + len("question 00")
        assert reply.new_tokens == 12
        assert engine.length <= CONTEXT
        assert reply.visual_tokens == 4
        assert sum(past.images for past in history.turns) == history.turns[0].images == 1
    kept = [past.prompt for past in history.turns]
    assert kept == [f"question {turn:02}" for turn in range(40 - len(kept), 40)]
    assert 3 < len(kept) < 12
    assert said > 2 * CONTEXT
    assert engine.calls.count("encode") == 1


def test_an_overflowed_dialogue_says_what_a_fresh_one_of_its_last_turns_says(
    load_hashing: Loader,
) -> None:
    pipeline, _ = load_hashing()
    history = pipeline.new_history()
    for turn in range(25):
        pipeline.chat(
            RED if turn == 0 else None, f"question {turn}", history=history, max_new_tokens=20
        )
    before = _without_last(history)
    last = history.turns[-1]
    assert before.tokens < CONTEXT
    assert last.reply == fresh_answer(load_hashing, before, [RED], last.prompt, max_new_tokens=20)


def test_a_question_too_long_by_itself_is_refused_and_leaves_the_history(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    pipeline.chat(RED, "What?", history=history)
    saved = history.to_json()
    engine.calls.clear()
    with pytest.raises(ContextLengthError, match=str(CONTEXT)):
        pipeline.chat(None, "x" * CONTEXT, history=history)
    assert engine.calls == []
    assert history.to_json() == saved


@pytest.mark.parametrize("call", ["encode", "embed", "prefill", "step"])
def test_a_failure_leaves_the_history_and_the_same_question_may_be_asked_again(
    loaded: tuple[Pipeline, HashEngine], call: str
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    pipeline.chat(RED, "What?", history=history)
    saved, engine.fail_in = history.to_json(), call
    with pytest.raises(EngineError, match=call):
        pipeline.chat(BLUE, "And?", history=history)
    assert history.to_json() == saved
    engine.fail_in, engine.prefilled = "", []
    assert engine.length == 0
    reply = pipeline.chat(BLUE, "And?", history=history)
    assert engine.prefilled == [reply.prompt_tokens]
    assert len(history) == 2


def test_a_bad_image_costs_no_cached_token(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    pipeline.chat(RED, "What?", history=history)
    cached = engine.length
    with pytest.raises(ImageError):
        pipeline.chat(b"no image", "And?", history=history)
    assert (engine.length, len(history)) == (cached, 1)


def test_clear_forgets_turns_and_images(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, _ = loaded
    history = pipeline.new_history()
    empty = history.tokens
    pipeline.chat(RED, "What?", history=history)
    assert history.tokens > empty == len(pipeline.facts.prompt.system)
    assert repr(history) == f"<History of 1 turns, {history.tokens} tokens>"
    history.clear()
    assert (len(history), history.turns, history.tokens) == (0, (), empty)
    assert pipeline.chat(None, "What?", history=history).visual_tokens == 0


def test_a_history_cleared_while_an_answer_comes_has_that_turn_alone(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, _ = loaded
    history = pipeline.new_history()
    pipeline.chat(RED, "What?", history=history)
    stream = pipeline.stream(None, "And?", history=history)
    next(stream)
    history.clear()
    text = "".join(stream)
    assert [turn.prompt for turn in history.turns] == ["And?"]
    assert history.turns[0].reply.endswith(text)


def test_an_empty_history_is_not_passed_over_for_a_new_one(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    history = loaded[0].new_history()
    assert (history or None) is history


def test_a_history_of_another_pipeline_is_refused_at_once(load_hashing: Loader) -> None:
    pipeline, other = load_hashing()[0], load_hashing()[0]
    with pytest.raises(ArgumentError, match="another pipeline"):
        pipeline.stream(RED, "What?", history=other.new_history())


def test_tokens_are_those_the_next_prompt_begins_with(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, _ = loaded
    history = pipeline.new_history()
    pipeline.chat([RED, BLUE], "What?", history=history)
    before = history.tokens
    reply = pipeline.chat(None, "And?", history=history)
    assert reply.prompt_tokens == before + len(pipeline.facts.prompt.turn([0] * 4))


def test_forget_makes_the_next_request_pay_for_everything(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, engine = loaded
    pipeline.chat(RED, "What?")
    again = pipeline.chat(RED, "What?")
    assert again.cached_tokens == again.prompt_tokens - 1
    pipeline.forget()
    assert pipeline.chat(RED, "What?").cached_tokens == 0
    assert engine.calls.count("encode") == 2


def test_a_saved_history_goes_on_elsewhere_with_its_images(load_hashing: Loader) -> None:
    pipeline, _ = load_hashing()
    history = pipeline.new_history()
    pipeline.chat([RED, BLUE], "naïve 😀?", history=history)
    pipeline.chat(None, "And?", history=history)
    saved = history.to_json()
    other, engine = load_hashing()
    restored = other.new_history(saved, [BLUE, GREY, RED])
    assert engine.tiles == [2]  # GREY is none of its images
    assert restored.to_json() == saved
    assert restored.tokens == history.tokens
    assert (
        other.chat(None, "Then?", history=restored).text
        == pipeline.chat(None, "Then?", history=history).text
    )


def test_a_saved_history_without_its_image_is_refused(load_hashing: Loader) -> None:
    pipeline, _ = load_hashing()
    history = pipeline.new_history()
    pipeline.chat(RED, "What?", history=history)
    assert len(pipeline.new_history(history.to_json())) == 1  # still in the feature cache
    with pytest.raises(ArgumentError, match="images"):
        load_hashing()[0].new_history(history.to_json(), BLUE)


@pytest.mark.parametrize(
    "saved",
    [
        "",
        "{}",
        "[1]",
        '{"version": 2, "turns": []}',
        '{"version": 1, "turns": [{"prompt": "a"}]}',
        '{"version": 1, "turns": [{"prompt": "a", "reply": "b", "images": ["xyz"]}]}',
        7,
    ],
)
def test_what_is_no_saved_history_is_refused(
    loaded: tuple[Pipeline, HashEngine], saved: Any
) -> None:
    with pytest.raises(ArgumentError, match="saved history"):
        loaded[0].new_history(saved)
