"""Greedy answers to held-out questions, in batches padded on the left, and their scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PreTrainedTokenizerBase

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.training.corpus import Broken, Encoded
from laco_deploy.training.dataset import IGNORE_INDEX
from laco_deploy.training.metrics import anls, exact_match
from laco_deploy.training.stage_callbacks import leave_group


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one question."""

    number: int
    """Of the sample in the held-out data."""
    question: str
    reference: str
    answer: str
    fault: str = ""
    """Why there is no answer: the sample is broken."""


class Examiner:
    """Asks each sample's last question; the turns before it are in the prompt, with their answers.

    The samples are those of training, encoded with `clean_mask`: what is supervised last is the
    reference and everything before it the prompt, so prompts are to the token what was trained on.

    Args:
        questions: gives `Encoded`, or `Broken` for a sample that cannot be read.
        tokenizer: of the checkpoint.
        collate: right-padded batch of `Encoded`.
        max_new_tokens: of an answer.
        batch_size: questions that are answered together.
        workers: processes that decode images.
    """

    def __init__(
        self,
        questions: Dataset[Encoded | Broken],
        tokenizer: PreTrainedTokenizerBase,
        collate: Callable[[Sequence[Any]], dict[str, Any]],
        *,
        max_new_tokens: int,
        batch_size: int = 1,
        workers: int = 0,
    ) -> None:
        self.questions = questions
        self._tokenizer, self._collate = tokenizer, collate
        self._max_new_tokens = max_new_tokens
        self._batch_size, self._workers = batch_size, workers

    def __len__(self) -> int:
        return len(self.questions)  # type: ignore[arg-type]

    @torch.no_grad()
    def ask(self, model: LacoForConditionalGeneration, numbers: Sequence[int]) -> list[Answer]:
        """Answers to the questions of these numbers, in their order."""
        if not numbers:
            return []
        was_training = model.training
        model.eval()
        loader = DataLoader(
            Subset(self.questions, list(numbers)),
            batch_size=self._batch_size,
            num_workers=self._workers,
            collate_fn=list,
            worker_init_fn=functools.partial(leave_group, None),
            # Its own: drawing from the global one would change a resumed run.
            generator=torch.Generator().manual_seed(0),
        )
        answers: list[Answer] = []
        rest = iter(numbers)
        for samples in loader:
            answers += self._ask_batch(model, samples, list(islice(rest, len(samples))))
        model.train(was_training)
        return answers

    def _ask_batch(
        self,
        model: LacoForConditionalGeneration,
        samples: Sequence[Encoded | Broken],
        numbers: Sequence[int],
    ) -> list[Answer]:
        found: dict[int, Answer] = {}
        prompts: list[Encoded] = []
        references: list[list[int]] = []
        for number, sample in zip(numbers, samples, strict=True):
            if isinstance(sample, Broken):
                found[number] = Answer(number, "", "", "", f"{sample.name}: {sample.reason}")
                continue
            start, end = last_answer(sample.labels.tolist())
            prompts.append(replace(sample, ids=sample.ids[:start], labels=sample.labels[:start]))
            references.append(sample.ids[start:end].tolist())
        if prompts:
            asked = [number for number in numbers if number not in found]
            replies = self._generate(model, prompts, {tokens[-1] for tokens in references})
            rows = zip(asked, prompts, references, replies, strict=True)
            for number, prompt, reference, reply in rows:
                question = self._text(prompt.ids.tolist())
                found[number] = Answer(number, question, self._text(reference), self._text(reply))
        return [found[number] for number in numbers]

    def _generate(self, model: Any, prompts: Sequence[Encoded], ends: set[int]) -> list[list[int]]:
        """Tokens of the answers, without what ends them."""
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        stops = ends | {int(end)}
        batch = to_left(self._collate(prompts), int(pad))
        batch.pop("labels", None)
        batch = {
            name: value.to(model.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        output = model.generate(
            **batch,
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(stops),
            pad_token_id=int(pad),
        )
        replies = output[:, batch["input_ids"].shape[1] :].tolist()
        return [_until(reply, stops) for reply in replies]

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def last_answer(labels: Sequence[int]) -> tuple[int, int]:
    """(start, end) of the last run of supervised tokens."""
    marked = [label != IGNORE_INDEX for label in labels]
    end = len(marked) - marked[::-1].index(True)
    start = end
    while start and marked[start - 1]:
        start -= 1
    return start, end


def to_left(batch: Mapping[str, Any], pad: int) -> dict[str, Any]:
    """Move the padding of a batch from the right to the left, as `generate` needs it."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    width = ids.shape[1]
    moved_ids, moved_mask = torch.full_like(ids, pad), torch.zeros_like(mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        moved_ids[row, width - length :] = ids[row, :length]
        moved_mask[row, width - length :] = 1
    return {**batch, "input_ids": moved_ids, "attention_mask": moved_mask}


def score(answers: Sequence[Answer]) -> dict[str, float]:
    """Means over the questions that could be asked, and how many could not."""
    asked = [answer for answer in answers if not answer.fault]
    count = max(len(asked), 1)
    return {
        "exact_match": sum(exact_match(a.answer, [a.reference]) for a in asked) / count,
        "anls": sum(anls(a.answer, [a.reference]) for a in asked) / count,
        "questions": len(asked),
        "broken": len(answers) - len(asked),
    }


def _until(tokens: Sequence[int], stops: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])


__all__ = ["Answer", "Examiner", "last_answer", "score", "to_left"]
