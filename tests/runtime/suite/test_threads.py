"""Many threads on one pipeline: every answer is the one that it gets alone."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from laco_runtimes.pipeline import Pipeline
from tests.runtime.suite.talk import IMAGES, LONG, QUESTIONS

THREADS = 8
Question = tuple[int, int, bool]
"""Numbers of the image and the prompt, and whether the answer is long."""


@pytest.mark.parametrize("requests", [8, pytest.param(50, marks=pytest.mark.full)])
def test_eight_threads_get_the_answers_of_one(pipeline: Pipeline, requests: int) -> None:
    chance = random.Random(requests)
    asked: list[list[Question]] = [
        [
            (chance.randrange(6), chance.randrange(10), chance.random() < 0.2)
            for _ in range(requests)
        ]
        for _ in range(THREADS)
    ]
    expected = {
        question: ask(pipeline, question) for question in {one for row in asked for one in row}
    }

    def work(number: int) -> list[tuple[int, ...]]:
        if number % 2:
            return [ask(pipeline, question) for question in asked[number]]
        return [streamed(pipeline, question) for question in asked[number]]

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(work, range(THREADS)))
    assert answers == [[expected[question] for question in row] for row in asked]


def ask(pipeline: Pipeline, question: Question) -> tuple[int, ...]:
    image, prompt, long = question
    return pipeline.chat(IMAGES[image], QUESTIONS[prompt], **(LONG if long else {})).tokens


def streamed(pipeline: Pipeline, question: Question) -> tuple[int, ...]:
    image, prompt, long = question
    with pipeline.stream(IMAGES[image], QUESTIONS[prompt], **(LONG if long else {})) as stream:
        text = "".join(stream)
    assert text == stream.reply.text
    return stream.reply.tokens


def test_threads_with_dialogues_of_their_own_get_their_own_answers(pipeline: Pipeline) -> None:
    def talk(number: int) -> list[str]:
        history = pipeline.new_history()
        for turn in range(4):
            image = IMAGES[number] if turn == 0 else None
            pipeline.chat(image, QUESTIONS[(number + turn) % 10], history=history, **LONG)
        return [turn.reply for turn in history.turns]

    alone = [talk(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(talk, range(4))) == alone
