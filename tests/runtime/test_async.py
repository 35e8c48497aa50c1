"""Answers in an event loop: they queue, stream, and end when their task does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from PIL import Image

from laco_runtimes.errors import ArgumentError, EngineError
from laco_runtimes.pipeline import Pipeline
from tests.runtime.fakes import CONTEXT
from tests.runtime.hashing import HashEngine

RED = Image.new("RGB", (20, 10), "red")


@pytest.fixture
def loaded(
    load_hashing: Callable[..., tuple[Pipeline, HashEngine]],
) -> tuple[Pipeline, HashEngine]:
    return load_hashing(HashEngine(lowest_stop=CONTEXT))


def test_achat_answers_as_chat_and_many_queue(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, _ = loaded
    expected = [pipeline.chat(RED, f"{n}?", max_new_tokens=6).text for n in range(10)]

    async def main() -> list[str]:
        asked = [pipeline.achat(RED, f"{n}?", max_new_tokens=6) for n in range(10)]
        return [reply.text for reply in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == expected


def test_the_event_loop_goes_on_while_the_engine_runs(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, engine = loaded
    prefilling, go_on = threading.Event(), threading.Event()

    def on_call(name: str) -> None:
        if name == "prefill":
            prefilling.set()
            assert go_on.wait(10)

    engine.on_call = on_call

    async def main() -> str:
        asked = asyncio.create_task(pipeline.achat(None, "What?", max_new_tokens=3))
        while not prefilling.is_set():
            await asyncio.sleep(0)
        go_on.set()
        return (await asked).text

    assert len(asyncio.run(main())) == 3


def test_astream_gives_the_pieces_and_then_the_reply(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, _ = loaded
    history = pipeline.new_history()

    async def main() -> tuple[list[str], str]:
        stream = pipeline.astream(RED, "What?", history=history, max_new_tokens=6)
        pieces = [piece async for piece in stream]
        assert [piece async for piece in stream] == []
        return pieces, stream.reply.text

    pieces, text = asyncio.run(main())
    assert len(pieces) == 6
    assert "".join(pieces) == text == history.turns[0].reply


def test_an_answer_asked_for_amid_a_stream_holds_nobody_up(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, _ = loaded

    async def main() -> tuple[str, str]:
        async with pipeline.astream(RED, "What?", max_new_tokens=6) as stream:
            first = await anext(stream)
            other = await pipeline.achat(RED, "Else?", max_new_tokens=3)
            return first + "".join([piece async for piece in stream]), other.text

    assert list(map(len, asyncio.run(main()))) == [6, 3]


@pytest.mark.parametrize("how", ["cancel", "aclose", "break", "stop"])
def test_each_way_to_end_a_stream_ends_it_within_one_token(
    loaded: tuple[Pipeline, HashEngine], how: str
) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    in_step, go_on = threading.Event(), threading.Event()

    def on_call(name: str) -> None:
        if name == "step" and engine.calls.count("step") == 4:
            in_step.set()
            assert go_on.wait(10)

    engine.on_call = on_call

    async def read() -> None:
        read = 0
        async for _ in pipeline.astream(RED, "What?", history=history, max_new_tokens=200):
            read += 1
            if how == "break" and read == 4:  # the prefill gave one, and the fourth step runs
                await asyncio.to_thread(in_step.wait, 10)
                break

    async def main() -> None:
        if how in ("cancel", "break"):
            task = asyncio.create_task(read())
            await asyncio.to_thread(in_step.wait, 10)
            if how == "cancel":
                await asyncio.sleep(0.01)  # it has read all pieces and waits
                task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() == (how == "cancel")
            go_on.set()
            await pipeline.achat(None, "Go?", max_new_tokens=1)  # behind it in the queue
        else:
            stream = pipeline.astream(RED, "What?", history=history, max_new_tokens=200)
            pieces = [await anext(stream)]
            await asyncio.to_thread(in_step.wait, 10)
            if how == "stop":
                stream.stop()
                go_on.set()
                pieces += [piece async for piece in stream]
                assert "".join(pieces) == stream.reply.text
            else:
                closing = asyncio.create_task(stream.aclose())
                await asyncio.sleep(0)
                go_on.set()
                await closing
                assert engine.length == history.tokens

    asyncio.run(main())
    assert engine.calls.count("step") == 4
    assert len(history) == (how == "stop")


def test_a_request_cancelled_in_the_queue_never_runs(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, engine = loaded
    prefilling, go_on = threading.Event(), threading.Event()

    def on_call(name: str) -> None:
        if name == "prefill":
            prefilling.set()
            assert go_on.wait(10)

    engine.on_call = on_call

    async def main() -> None:
        first = asyncio.create_task(pipeline.achat(None, "One?", max_new_tokens=2))
        await asyncio.to_thread(prefilling.wait, 10)
        second = asyncio.create_task(pipeline.achat(None, "Two?", max_new_tokens=2))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.wait([second])
        go_on.set()
        await first

    asyncio.run(main())
    assert engine.calls.count("prefill") == 1


def test_errors_reach_the_task_and_the_next_request_is_answered(
    loaded: tuple[Pipeline, HashEngine],
) -> None:
    pipeline, engine = loaded

    async def main() -> int:
        with pytest.raises(ArgumentError, match="prompt"):
            await pipeline.achat(RED, "")
        engine.fail_in = "step"
        with pytest.raises(EngineError, match="step"):
            await pipeline.achat(RED, "What?")
        engine.fail_in = ""
        return (await pipeline.achat(RED, "What?", max_new_tokens=3)).new_tokens

    assert asyncio.run(main()) == 3


def test_a_loop_that_ends_first_ends_the_answer(loaded: tuple[Pipeline, HashEngine]) -> None:
    pipeline, engine = loaded
    history = pipeline.new_history()
    in_step, go_on = threading.Event(), threading.Event()

    def on_call(name: str) -> None:
        if name == "step" and engine.calls.count("step") == 4:
            in_step.set()
            assert go_on.wait(10)

    engine.on_call = on_call
    kept = []

    async def main() -> None:
        stream = pipeline.astream(RED, "What?", history=history, max_new_tokens=200)
        kept.append(stream)  # so that it is not dropped with the loop
        await anext(stream)
        await asyncio.to_thread(in_step.wait, 10)

    asyncio.run(main())
    go_on.set()
    assert pipeline.chat(None, "Go?", max_new_tokens=2).new_tokens == 2
    assert engine.calls.count("step") == 4 + 1
    assert len(history) == 0
