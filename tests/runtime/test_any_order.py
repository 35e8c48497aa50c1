"""Any mix of requests, ends and failures: every answer is what a fresh pipeline says."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from laco_runtimes.engines.base import Capabilities
from laco_runtimes.errors import EngineError, OutOfMemoryError
from laco_runtimes.history import History
from laco_runtimes.pipeline import Pipeline
from tests.runtime.fakes import CONTEXT
from tests.runtime.hashing import HashEngine

PICTURES = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "grey")]
PROMPTS = ["What?", "abcabcabcabc abcabc?", "And what is there?"]
Loader = Callable[..., tuple[Pipeline, HashEngine]]


class Fresh:
    """Says what a pipeline without any past says to a dialogue."""

    def __init__(self, load: Loader) -> None:
        self.pipeline, self.engine = load(feature_cache_bytes=0)

    def answer(self, history: History | None, images: list[Image.Image], prompt: str) -> str:
        past = self.pipeline.new_history(history.to_json() if history else None, PICTURES)
        self.pipeline.forget()
        return self.pipeline.chat(images, prompt, history=past, max_new_tokens=10).text


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rewinds", [True, False])
def test_no_order_of_requests_changes_an_answer(
    load_hashing: Loader, seed: int, rewinds: bool
) -> None:
    able = Capabilities(scores=rewinds, rewinds=rewinds, batches_tiles=True)
    pipeline, engine = load_hashing(
        HashEngine(capabilities=able), feature_cache_bytes=random.Random(seed).choice([0, 100, 999])
    )
    fresh, chance = Fresh(load_hashing), random.Random(seed)
    histories = [pipeline.new_history() for _ in range(3)]
    for _ in range(40):
        history = chance.choice([None, *histories])
        images = chance.sample(PICTURES, k=chance.choice([0, 0, 1, 1, 2]))
        prompt, what = (
            chance.choice(PROMPTS),
            chance.choice(["ask"] * 4 + ["close", "stop", "fail"]),
        )
        lookup = chance.choice([0, 3]) if rewinds else 0
        before = history.to_json() if history else ""
        expected = fresh.answer(history, images, prompt)
        stream = pipeline.stream(
            images, prompt, history=history, max_new_tokens=10, prompt_lookup=lookup
        )
        pieces: list[str] = []
        failed = False
        if what == "fail":
            engine.fail_in = chance.choice(["encode", "embed", "prefill", "step", "rewind"])
            try:
                pieces = list(stream)
            except EngineError:
                failed = True
            engine.fail_in = ""
        else:
            reads = chance.randint(0, 9) if what != "ask" else 99
            pieces = [piece for _, piece in zip(range(reads), stream, strict=False)]
            if what == "close":
                stream.close()
            elif what == "stop":
                stream.stop()
                pieces += stream
        text = "".join(pieces)
        assert text == expected if what == "ask" else expected.startswith(text)
        assert engine.length <= CONTEXT
        if history and (failed or (what == "close" and len(text) < len(expected))):
            assert history.to_json() == before
        elif history and pieces:
            assert history.turns[-1].reply == text


def test_threads_with_dialogues_of_their_own_get_their_own_answers(load_hashing: Loader) -> None:
    pipeline, _ = load_hashing()
    fresh = Fresh(load_hashing)

    def talk(number: int) -> tuple[History, list[str]]:
        history = pipeline.new_history()
        images = [[PICTURES[number % 3]], [], [PICTURES[1]], []]
        return history, [
            pipeline.chat(one, f"{number} {turn}", history=history, max_new_tokens=10).text
            for turn, one in enumerate(images)
        ]

    with ThreadPoolExecutor(8) as pool:
        talks = list(pool.map(talk, range(8)))
    for number, (history, said) in enumerate(talks):
        assert [turn.reply for turn in history.turns] == said
        past = History(history._template, history.owner, history.entries[:3])
        assert fresh.answer(past, [], f"{number} 3") == said[3]


def test_no_memory_is_an_error_of_its_own_and_the_next_request_is_answered(
    load_hashing: Loader,
) -> None:
    pipeline, engine = load_hashing()
    expected = pipeline.chat(PICTURES[0], "What?", max_new_tokens=5).text

    def refuse(name: str) -> None:
        if name == "step":
            raise OutOfMemoryError("there is no memory left. This is a test.")

    engine.on_call = refuse
    with pytest.raises(MemoryError):
        pipeline.chat(PICTURES[1], "What?")
    engine.on_call = lambda name: None
    assert engine.length == 0  # what the request held is given back at once
    assert pipeline.chat(PICTURES[0], "What?", max_new_tokens=5).text == expected
