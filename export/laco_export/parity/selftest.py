"""Write what `laco_runtimes.selftest` compares with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from laco_export.parity.answers import UNUSED, Answers
from laco_export.parity.questions import QuestionSet
from laco_export.parity.thresholds import language_row, visual_row
from laco_export.precision import Precisions
from laco_runtimes.selftest import SELFTEST_NAME

IMAGES = 2
TOKENS = 16
TOP = 64
"""Likeliest tokens whose logits are kept per position."""


def write_selftest(
    root: Path, asked: QuestionSet, reference: Answers, precisions: Precisions
) -> None:
    """Write the reference's answers to the first questions, with the limits of the precision."""
    rows = range(min(IMAGES, len(asked.answered)))
    indexes = [asked.answered[row] for row in rows]
    questions = [asked.questions[index] for index in indexes]
    longest = max(len(question.ids) for question in questions)
    ids = np.full((len(questions), longest), UNUSED, np.int64)
    for row, question in enumerate(questions):
        ids[row, : len(question.ids)] = question.ids
    logits = np.asarray(reference.logits[: len(questions), :TOKENS])  # [images, tokens, V]
    top = min(TOP, logits.shape[-1])
    top_ids = np.argsort(-logits, axis=-1, kind="stable")[..., :top]
    peak = logits.max(-1, keepdims=True)
    log_sums = peak[..., 0] + np.log(np.exp((logits - peak).astype(np.float64)).sum(-1))
    language = language_row(precisions)
    limits = (
        visual_row(precisions).visual["cosine_min"][1],
        language.language["kl_mean"][1],
        language.language["top1"][1],
    )
    np.savez_compressed(
        root / SELFTEST_NAME,
        squares=np.concatenate([asked.squares(index) for index in indexes]),
        tiles=np.array([question.tiles for question in questions]),
        sizes=np.array([question.size for question in questions]),
        ids=ids,
        features=np.concatenate([reference.features[asked.rows(index)] for index in indexes]),
        tokens=np.asarray(reference.tokens[: len(questions), :TOKENS]),
        top_ids=top_ids.astype(np.int64),
        top_logits=np.take_along_axis(logits, top_ids, axis=-1),
        log_sums=log_sums,
        limits=np.array(limits),
        tie_margin=np.array([language.tie_margin]),
    )


__all__ = ["write_selftest"]
