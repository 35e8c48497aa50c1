"""Ends that a reader asks for, at any token: stop keeps the turn, cancel drops it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from PIL import Image

from laco_runtimes import turnstile
from laco_runtimes.errors import ArgumentError
from laco_runtimes.pipeline import Pipeline
from tests.runtime.fakes import CONTEXT
from tests.runtime.hashing import HashEngine

RED = Image.new("RGB", (20, 10), "red")
TOKENS = 9
ENDS = [1, 2, 5, TOKENS]
"""Tokens 1, 2, one in the middle and the last."""


@pytest.fixture
def loaded(
    load_hashing: Callable[..., tuple[Pipeline, HashEngine]],
) -> tuple[Pipeline, HashEngine]:
    return load_hashing(HashEngine(lowest_stop=CONTEXT))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("how", ["stream", "callback"])
def test_stop_keeps_the_answer_so_far_as_a_turn(
    loaded: tuple[Pipeline, HashEngine], end: int, how: str
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    pipeline.chat(RED, "What?", history=history, max_new_tokens=3)
    whole = pipeline.chat(
        None, "And?", history=pipeline.new_history(history.to_json()), max_new_tokens=TOKENS
    )
    engine.calls.clear()
    if how == "stream":
        stream = pipeline.stream(None, "And?", history=history, max_new_tokens=TOKENS)
        pieces = [next(stream) for _ in range(end)]
        stream.stop()
        assert list(stream) == []
        reply = stream.reply
    else:
        pieces = []

        def on_text(piece: str) -> str | None:
            pieces.append(piece)
            return "stop" if len(pieces) == end else None

        reply = pipeline.chat(None, "And?", history=history, max_new_tokens=TOKENS, on_text=on_text)
    assert engine.calls.count("step") == end - 1
    assert "".join(pieces) == reply.text == whole.text[:end]
    assert reply.stop_reason == "stopped"
    assert history.turns[-1].reply == reply.text
    after = pipeline.chat(None, "Then?", history=history, max_new_tokens=3)
    assert after.prefilled_tokens < 40
    assert len(history) == 3


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("how", ["close", "drop", "callback"])
def test_cancel_drops_the_turn_and_rewinds_the_cache(
    loaded: tuple[Pipeline, HashEngine], end: int, how: str
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    pipeline.chat(RED, "What?", history=history, max_new_tokens=3)
    saved, before = history.to_json(), history.tokens
    engine.calls.clear()
    if how == "callback":
        pieces: list[str] = []

        def on_text(piece: str) -> str | None:
            pieces.append(piece)
            return "cancel" if len(pieces) == end else None

        reply = pipeline.chat(RED, "And?", history=history, max_new_tokens=TOKENS, on_text=on_text)
        assert (reply.stop_reason, reply.text) == ("cancelled", "".join(pieces))
    else:
        stream = pipeline.stream(RED, "And?", history=history, max_new_tokens=TOKENS)
        for _ in range(end):
            next(stream)
        if how == "close":
            stream.close()
            with pytest.raises(ArgumentError, match="not complete"):
                _ = stream.reply
        else:
            del stream
    assert engine.calls.count("step") == end - 1
    assert history.to_json() == saved
    assert engine.length == before
    whole = pipeline.chat(RED, "And?", history=history, max_new_tokens=TOKENS)
    assert whole.cached_tokens == before
    assert len(history) == 2


def test_pieces_that_were_held_back_can_be_read_after_stop(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, _ = loaded
    whole = pipeline.chat(RED, "What?", max_new_tokens=TOKENS)
    # The second and third letter begin a stop string that never becomes whole.
    stream = pipeline.stream(
        RED, "What?", max_new_tokens=TOKENS, stop=whole.text[1:4] + "!", logprobs=0
    )
    pieces = [next(stream)]
    stream.stop()
    pieces += stream
    assert "".join(pieces) == stream.reply.text == whole.text[: stream.reply.new_tokens]
    assert stream.reply.logprobs is not None
    assert tuple(token.id for token in stream.reply.logprobs) == stream.reply.tokens


@pytest.mark.parametrize("first", [1, 3, 6])
def test_a_stop_string_ends_the_answer_and_is_left_out(
    loaded: tuple[Pipeline, HashEngine], first: int
) -> None:
    pipeline, _ = loaded
    text = pipeline.chat(RED, "What?", max_new_tokens=TOKENS).text
    string = text[first : first + 3]
    assert text.index(string) == first
    history = pipeline.new_history()
    stream = pipeline.stream(
        RED, "What?", max_new_tokens=TOKENS, stop=("???", string), history=history
    )
    assert "".join(stream) == stream.reply.text == text[:first]
    assert stream.reply.stop_reason == "stop_string"
    assert stream.reply.new_tokens == first + 3
    assert history.turns[0].reply == text[:first]
    # The KV cache goes on from the text that is kept.
    after = pipeline.chat(None, "And?", history=history, max_new_tokens=3)
    again = pipeline.new_history(history.to_json())
    assert after.text == again.turns[-1].reply


def test_stop_or_close_before_the_first_piece_runs_nothing(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    for end in ("stop", "close"):
        stream = pipeline.stream(RED, "What?", history=history)
        getattr(stream, end)()
        assert list(stream) == []
        with pytest.raises(ArgumentError, match="not complete"):
            _ = stream.reply
    assert engine.calls == []
    assert len(history) == 0


def test_stop_after_the_end_changes_nothing(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, _ = loaded
    stream = pipeline.stream(RED, "What?", max_new_tokens=3)
    text = "".join(stream)
    stream.stop()
    stream.close()
    assert (stream.reply.text, stream.reply.stop_reason) == (text, "length")


@pytest.mark.parametrize(("end", "turns"), [("stop", 1), ("close", 0)])
def test_another_thread_ends_an_answer_within_one_token(
    loaded: tuple[Pipeline, HashEngine], end: str, turns: int
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    stream = pipeline.stream(RED, "What?", history=history, max_new_tokens=200)
    in_step, go_on = threading.Event(), threading.Event()

    def on_call(name: str) -> None:
        if name == "step" and engine.calls.count("step") == 4:
            in_step.set()
            go_on.wait(10)

    engine.on_call = on_call
    pieces: list[str] = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    assert in_step.wait(10)
    getattr(stream, end)()  # while a step runs
    go_on.set()
    reader.join(10)
    assert engine.calls.count("step") == 4
    assert len(history) == turns
    if end == "stop":
        assert stream.reply.text == "".join(pieces)
        assert stream.reply.stop_reason == "stopped"


def test_a_request_that_is_closed_while_it_waits_never_runs(
    loaded: tuple[Pipeline, HashEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "STALLED_S", 0.001)
    pipeline, engine = loaded
    first = pipeline.stream(RED, "What?", max_new_tokens=5)
    next(first)
    calls = list(engine.calls)
    second = pipeline.stream(RED, "Else?", max_new_tokens=5)
    waiter = threading.Thread(target=lambda: list(second))
    waiter.start()
    second.close()
    waiter.join(10)
    assert not waiter.is_alive()
    assert engine.calls == calls
    assert len("".join(first)) == 4


def test_an_error_of_the_callback_is_raised_and_drops_the_turn(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    with pytest.raises(ZeroDivisionError):
        pipeline.chat(RED, "What?", history=history, on_text=lambda piece: 1 / 0)
    assert len(history) == 0
    assert engine.length == history.tokens
    assert pipeline.chat(RED, "What?", max_new_tokens=3).new_tokens == 3


def test_what_else_a_callback_returns_ends_nothing(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, _ = loaded
    said: list[object] = [None, 5, "", "halt", [1], True]
    reply = pipeline.chat(None, "What?", max_new_tokens=6, on_text=lambda piece: said.pop())
    assert (reply.new_tokens, said) == (6, [])
