"""Sampling gives every token the probability that the logits processors of transformers give it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from laco_runtimes.engines.base import Floats
from laco_runtimes.sampling import Sampler
from laco_runtimes.settings import Settings

SEEN = [3, 3, 17, 999]


def probabilities(logits: Floats, settings: Settings) -> np.ndarray[Any, Any]:
    """[V], by transformers."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
    if settings.repetition_penalty != 1:
        steps.insert(0, RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        steps.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        steps.append(MinPLogitsWarper(settings.min_p))
    scores = steps(
        cast(torch.LongTensor, torch.tensor([SEEN])), torch.from_numpy(logits.copy())[None].double()
    )
    return scores[0].softmax(-1).numpy()


class Chance:
    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
        {"temperature": 2.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 3.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_each_token_is_drawn_where_its_share_lies(values: dict[str, Any], seed: int) -> None:
    logits = (4 * np.random.default_rng(seed).standard_normal(1000)).astype(np.float32)
    settings = Settings(**values)
    chances = probabilities(logits, settings)
    order = np.argsort(-chances, kind="stable")
    ends = np.cumsum(chances[order])
    sampler = Sampler(settings, SEEN)
    for token, end in zip(order, ends, strict=True):
        if chances[token] < 1e-4:  # sums of float32 end there
            break
        # In the middle of its share, and inside both of its ends.
        for inside in (0.1, 0.5, 0.9):
            sampler._random = Chance(end - chances[token] * inside)  # type: ignore[assignment]
            assert sampler.pick(logits) == token
