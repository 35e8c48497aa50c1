"""What the shared suite asks the shipped model, and how an answer is asked for without any past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from laco_runtimes.engines.base import Floats, VisionEncoder
from laco_runtimes.history import History
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.reply import Reply
from tests.bundles import TINY

ENGINES = ("torch", "openvino", "onnxruntime")
"""Engines that run here; `torch` is the checkpoint itself."""

IMAGES = [TINY / "parity" / f"{number:02}.png" for number in range(30)]
QUESTIONS = (
    "What digit is this?",
    "What color is the square?",
    "How many bars are there?",
    "What is written here?",
    "Which shape is it?",
    "And the other one?",
    "What value does A have?",
    "Is it red?",
    "What number is this?",
    "What did I ask first?",
)

LONG: dict[str, Any] = {"repetition_penalty": 1000.0, "max_new_tokens": 12}
"""The model answers in a word and stops. With this it goes on to say all words that it knows, each
once, and none twice that was in the question: long answers that hang on the whole prompt."""


@dataclass
class CountingEncoder:
    """A vision encoder that counts what it is given."""

    encoder: VisionEncoder
    tiles: int = 0

    def encode(self, pixel_values: Floats) -> Floats:
        self.tiles += len(pixel_values)
        return self.encoder.encode(pixel_values)


def count_tiles(pipeline: Pipeline) -> CountingEncoder:
    """Put a `CountingEncoder` into a pipeline, or find the one that is there."""
    reader = pipeline._runner.reader
    if not isinstance(reader._encoder, CountingEncoder):
        reader._encoder = CountingEncoder(reader._encoder)
    return reader._encoder


def before_last(history: History) -> History:
    """The dialogue without its last turn: the same ids, not the same text encoded again."""
    return History(history._template, history.owner, history.entries[:-1])


def without_past(
    pipeline: Pipeline, history: History, images: Sequence[Any], prompt: str, **settings: Any
) -> Reply:
    """Ask once more what was asked last, with an empty KV cache. `history` stays as it is."""
    past = before_last(history)
    pipeline.forget()
    reply = pipeline.chat(list(images), prompt, history=past, **settings)
    assert reply.cached_tokens == 0
    return reply


__all__ = [
    "ENGINES",
    "IMAGES",
    "LONG",
    "QUESTIONS",
    "CountingEncoder",
    "before_last",
    "count_tiles",
    "without_past",
]
