"""Greedy answers are the same tokens on every engine, whatever way they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from laco_runtimes.pipeline import Pipeline
from tests.runtime.suite.talk import ENGINES, IMAGES, LONG, QUESTIONS

On = Callable[[str], Pipeline]
OTHERS = ENGINES[1:]


@pytest.fixture(scope="module")
def reference(pipeline_on: On) -> list[tuple[int, ...]]:
    """Answers of PyTorch, without any past."""
    answers = []
    for number in range(20):
        pipeline_on("torch").forget()
        answers.append(ask(pipeline_on("torch"), number))
    assert len(set(answers)) > 10
    return answers


def ask(pipeline: Pipeline, number: int, **settings: Any) -> tuple[int, ...]:
    how = LONG if number % 2 else {}
    return pipeline.chat(IMAGES[number], QUESTIONS[number % 10], **how, **settings).tokens


@pytest.mark.parametrize("engine", OTHERS)
def test_single_answers_are_those_of_pytorch(
    pipeline_on: On, engine: str, reference: list[tuple[int, ...]]
) -> None:
    assert [ask(pipeline_on(engine), number) for number in range(20)] == reference


@pytest.mark.parametrize("engine", ENGINES)
def test_prompt_lookup_changes_no_token(
    pipeline_on: On, engine: str, reference: list[tuple[int, ...]]
) -> None:
    pipeline = pipeline_on(engine)
    assert pipeline.info.capabilities.scores
    assert [ask(pipeline, number, prompt_lookup=4) for number in range(20)] == reference


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("images", [1, 5])
def test_dialogues_are_those_of_pytorch(pipeline_on: On, engine: str, images: int) -> None:
    histories = []
    for name in ("torch", engine):
        pipeline = pipeline_on(name)
        history = pipeline.new_history()
        for turn, prompt in enumerate(QUESTIONS):
            seen = IMAGES[5 : 5 + images] if turn == 0 else None
            pipeline.chat(seen, prompt, history=history, **(LONG if turn % 2 else {}))
        histories.append([turn.reply_ids for turn in history.entries])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_and_an_event_loop_give_the_answers_of_single_requests(
    pipeline_on: On, engine: str
) -> None:
    pipeline = pipeline_on(engine)
    expected = [pipeline.chat(image, "What is it?", **LONG).tokens for image in IMAGES[:6]]
    pipeline.forget()
    assert [r.tokens for r in pipeline.chat_batch(IMAGES[:6], "What is it?", **LONG)] == expected

    async def main() -> list[tuple[int, ...]]:
        asked = [pipeline.achat(image, "What is it?", **LONG) for image in IMAGES[:6]]
        return [reply.tokens for reply in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_log_probabilities_are_those_of_the_answer(pipeline_on: On, engine: str) -> None:
    reply = pipeline_on(engine).chat(IMAGES[0], QUESTIONS[0], logprobs=3)
    torch = pipeline_on("torch").chat(IMAGES[0], QUESTIONS[0], logprobs=3)
    assert reply.logprobs is not None
    assert torch.logprobs is not None
    assert tuple(token.id for token in reply.logprobs) == reply.tokens
    for own, other in zip(reply.logprobs, torch.logprobs, strict=True):
        assert own.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert own.alternatives is not None
        assert own.alternatives[0] == (own.id, own.logprob)
