"""Dialogues on every engine: what is kept from turn to turn saves cost and changes no answer."""

from __future__ import annotations

from typing import Any

import pytest

from laco_runtimes.history import History
from laco_runtimes.pipeline import Pipeline
from tests.runtime.suite.talk import (
    IMAGES,
    LONG,
    QUESTIONS,
    before_last,
    count_tiles,
    without_past,
)

TOKENS = LONG["max_new_tokens"]
ENDS = [1, 2, TOKENS // 2, TOKENS]
"""Tokens 1, 2, one in the middle and the last."""


@pytest.mark.parametrize("settings", [{}, LONG], ids=["short", "long"])
@pytest.mark.parametrize("images", [1, 5])
def test_ten_turns_say_what_fresh_prompts_of_the_same_ids_say(
    pipeline: Pipeline, images: int, settings: dict[str, Any]
) -> None:
    history, encoder = pipeline.new_history(), count_tiles(pipeline)
    seen = encoder.tiles
    replies = [
        pipeline.chat(IMAGES[:images] if turn == 0 else None, prompt, history=history, **settings)
        for turn, prompt in enumerate(QUESTIONS)
    ]
    assert encoder.tiles - seen == images
    assert len(history) == 10
    assert {reply.visual_tokens for reply in replies} == {36 * images}
    for reply in replies[1:]:
        assert reply.prefilled_tokens < 40
    for turn in (9, 4):
        while len(history) > turn + 1:
            history = before_last(history)
        again = without_past(pipeline, history, [], QUESTIONS[turn], **settings)
        assert again.tokens == replies[turn].tokens
        assert again.prompt_tokens == replies[turn].prompt_tokens


def test_turn_2_with_20_new_tokens_prefills_these_alone(pipeline: Pipeline) -> None:
    history, encoder = pipeline.new_history(), count_tiles(pipeline)
    first = pipeline.chat(IMAGES[0], QUESTIONS[0], history=history)
    assert first.stop_reason == "stop"
    assert first.cached_tokens == 0
    prompt = next(
        text
        for text in (" ".join(["digit"] * count) for count in range(1, 30))
        if len(pipeline._runner.tokenizer.encode(text).ids) >= 20
    )
    words = len(pipeline._runner.tokenizer.encode(prompt).ids)
    tiles, cached = encoder.tiles, pipeline._runner.language.length
    second = pipeline.chat(None, prompt, history=history)
    template = pipeline.facts.prompt
    assert encoder.tiles == tiles
    assert second.cached_tokens == cached == first.prompt_tokens + first.new_tokens - 1
    assert second.prefilled_tokens == (
        len(template.assistant_close) + len(template.user_open) + words + len(template.user_close)
    )
    # The same image given once more is known too.
    pipeline.chat(IMAGES[0], "Again?")
    assert encoder.tiles == tiles


def start(pipeline: Pipeline) -> History:
    history = pipeline.new_history()
    pipeline.chat(IMAGES[1], QUESTIONS[1], history=history)
    return history


@pytest.mark.parametrize("end", ENDS)
def test_cancelled_at_any_token_a_turn_leaves_no_trace(pipeline: Pipeline, end: int) -> None:
    expected = start(pipeline)
    pipeline.chat(None, QUESTIONS[2], history=expected, **LONG)
    history = start(pipeline)
    saved = history.to_json()
    pieces = 0

    def on_text(piece: str) -> str | None:
        nonlocal pieces
        pieces += 1
        return "cancel" if pieces >= end else None

    reply = pipeline.chat(IMAGES[2], "Else?", history=history, on_text=on_text, **LONG)
    assert reply.stop_reason == "cancelled"
    # A character of several tokens comes as one piece.
    assert end <= reply.new_tokens <= end + 4
    assert history.to_json() == saved
    assert pipeline._runner.language.length == history.tokens
    pipeline.chat(None, QUESTIONS[2], history=history, **LONG)
    assert history.to_json() == expected.to_json()


@pytest.mark.parametrize("end", ENDS[:-1])
def test_stopped_at_any_token_a_turn_is_kept_as_far_as_it_came(
    pipeline: Pipeline, end: int
) -> None:
    history = start(pipeline)
    stream = pipeline.stream(None, QUESTIONS[2], history=history, **LONG)
    pieces = [next(stream) for _ in range(end)]
    stream.stop()
    pieces += stream
    assert stream.reply.text == "".join(pieces) == history.turns[-1].reply
    assert stream.reply.stop_reason == "stopped"
    reply = pipeline.chat(None, QUESTIONS[3], history=history, **LONG)
    assert without_past(pipeline, history, [], QUESTIONS[3], **LONG).tokens == reply.tokens


@pytest.mark.parametrize("length", [1, 4, 9])
def test_a_stop_string_ends_the_answer_wherever_its_tokens_end(
    pipeline: Pipeline, length: int
) -> None:
    whole = pipeline.chat(IMAGES[0], QUESTIONS[0], **LONG).text
    string = whole[7 : 7 + length]
    stream = pipeline.stream(IMAGES[0], QUESTIONS[0], stop=("no such thing", string), **LONG)
    assert "".join(stream) == stream.reply.text == whole[: whole.index(string)]
    assert stream.reply.stop_reason == "stop_string"
    assert pipeline.chat(IMAGES[0], QUESTIONS[0], **LONG).text == whole


def test_a_seed_gives_the_same_text_whatever_came_between(pipeline: Pipeline) -> None:
    hot: dict[str, Any] = {**LONG, "temperature": 3.0, "top_p": 0.98}

    def ask(seed: int) -> tuple[int, ...]:
        return pipeline.chat(IMAGES[0], QUESTIONS[0], seed=seed, **hot).tokens

    said = [ask(seed) for seed in range(5)]
    assert len(set(said)) > 1
    pipeline.forget()
    assert [ask(seed) for seed in reversed(range(5))] == said[::-1]
    pipeline.chat(IMAGES[3], QUESTIONS[2], temperature=1.0)
    assert ask(3) == said[3]


def test_a_dialogue_of_four_contexts_never_fails_and_keeps_its_image(pipeline: Pipeline) -> None:
    history, context, said, turn = pipeline.new_history(), pipeline.info.context, 0, 0
    while said < 4 * context:
        prompt = " ".join([QUESTIONS[turn % 10]] * 15)
        reply = pipeline.chat(IMAGES[0] if turn == 0 else None, prompt, history=history, **LONG)
        said += len(pipeline._runner.tokenizer.encode(prompt).ids) + reply.new_tokens
        assert reply.visual_tokens == 36
        assert reply.new_tokens == TOKENS or reply.stop_reason == "stop"  # there was room
        assert pipeline._runner.language.length <= context
        assert history.turns[0].images == 1
        turn += 1
    assert 1 < len(history) < turn / 2
    kept = [past.prompt for past in history.turns]
    assert kept == [" ".join([QUESTIONS[n % 10]] * 15) for n in range(turn - len(kept), turn)]
    again = without_past(pipeline, history, [], kept[-1], **LONG)
    assert again.text == history.turns[-1].reply


def test_image_by_image_a_dialogue_says_what_it_says_afresh(pipeline: Pipeline) -> None:
    history = pipeline.new_history()
    for turn in range(4):
        reply = pipeline.chat(IMAGES[turn], QUESTIONS[turn], history=history, **LONG)
        assert reply.visual_tokens == 36 * (turn + 1)
    again = without_past(pipeline, history, [IMAGES[3]], QUESTIONS[3], **LONG)
    assert again.tokens == reply.tokens
