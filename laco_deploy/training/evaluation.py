"""Exact-match accuracy of a model's greedy answers, per group and task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.training.dataset import Sample
from laco_runtimes.images import Preprocessing, load_image, preprocess
from laco_runtimes.prompt import PromptTemplate, encode_text


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers out of all, for one task of one group."""

    group: str
    task: str
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.correct / self.total


@torch.no_grad()
def answer(
    model: LacoForConditionalGeneration,
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    template: PromptTemplate,
    preprocessing: Preprocessing,
    *,
    max_new_tokens: int = 16,
) -> list[str]:
    """Greedy answers to the first question of each sample, as one batch."""
    tokens = model.config.tokens_per_tile
    prompts = [
        [*template.system, *template.turn(encode_text(tokenizer, s.turns[0].prompt), (tokens,))]
        for s in samples
    ]
    longest = max(map(len, prompts))
    pad = template.stop[0]
    # Padded on the left, so that every answer begins in the same column.
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    pixels = np.concatenate([preprocess(load_image(s.image), preprocessing) for s in samples])
    generator: Any = model  # `generate` is typed for a class that mixes it in differently
    output = generator.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        pixel_values=torch.from_numpy(pixels).to(model.device, model.dtype),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(template.stop),
        pad_token_id=pad,
    )
    answers = []
    for row in output[:, longest:].tolist():
        end = next((i for i, token in enumerate(row) if token in template.stop), len(row))
        answers.append(tokenizer.decode(row[:end]))
    return answers


def evaluate(
    model: LacoForConditionalGeneration,
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    template: PromptTemplate,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 60,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Score each sample's first question: right when answer and reference are the same words."""
    was_training = model.training
    model.eval()
    right: dict[tuple[str, str], list[bool]] = {}
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        replies = answer(model, batch, tokenizer, template, preprocessing)
        for sample, reply in zip(batch, replies, strict=True):
            hit = reply.strip().lower() == sample.turns[0].answer.strip().lower()
            right.setdefault((sample.group, sample.tasks[0]), []).append(hit)
        if progress is not None:
            progress(min(start + batch_size, len(samples)), len(samples))
    model.train(was_training)
    return [
        Score(group, task, sum(hits), len(hits)) for (group, task), hits in sorted(right.items())
    ]


def pooled(name: str, scores: Iterable[Score]) -> Score:
    """One score over several tasks, every question counting the same."""
    chosen = list(scores)
    return Score(name, "", sum(s.correct for s in chosen), sum(s.total for s in chosen))


__all__ = ["Score", "answer", "evaluate", "pooled"]
