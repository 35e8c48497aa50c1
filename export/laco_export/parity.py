"""Does the exported engine answer as the PyTorch model does? Measured on the engine itself.

Three comparisons per image, from the pixels on: the visual tokens, the logits behind the prompt,
and a free greedy answer. The first that misses ends the export.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from laco_export.job import ExportJob, ParitySample
from laco_export.protocols import Floats, ImageEncoder
from laco_runtimes.engines.base import LoadedEngine
from laco_runtimes.errors import ArgumentError, ContextLengthError, ParityError
from laco_runtimes.generation import generate, greedy
from laco_runtimes.images import load_image, preprocess
from laco_runtimes.manifest import Parity
from laco_runtimes.prompt import check_prompt, encode_text, load_tokenizer

MIN_IMAGES = 16
"""Fewer say too little: one image may hide an error in a corner of the patch grid."""

BASELINE_IMAGES = 2
"""Images on which the visual tokens of a baseline are compared. Its words mean nothing."""

GREEDY_TOKENS = 32
"""Longest answer that is compared."""

TIE_MARGIN = 1e-4
"""Two best logits closer than this in PyTorch are a tie, which rounding may settle either way."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an engine may be from PyTorch."""

    cosine_min: float
    """Least cosine of any visual token."""
    logits_max: float
    """Largest absolute difference of any logit."""


TOLERANCES = {"fp32": Tolerance(cosine_min=0.99999, logits_max=1e-3)}
"""By precision of the weights."""


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What was found; everything in it is within tolerance."""

    parity: Parity
    ties: tuple[str, ...]
    """A sentence for every answer that parted from PyTorch's at a tie."""


@dataclass(frozen=True, slots=True)
class Question:
    """A sample as the graphs take it."""

    name: str
    pixel_values: Floats  # [1, 3, S, S]
    ids: list[int]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class _Found:
    cosines: NDArray[np.float64]  # [N']
    logits_difference: float
    tie: str | None


def check_samples(samples: Sequence[ParitySample]) -> None:
    """Refuse too few samples.

    Raises:
        ArgumentError: fewer than `MIN_IMAGES`.
    """
    if len(samples) < MIN_IMAGES:
        raise ArgumentError(
            f"{len(samples)} images are too few to compare the engine with PyTorch. "
            f"Give at least {MIN_IMAGES}."
        )


def prepare(job: ExportJob, tokenizer: Path) -> list[Question]:
    """Pixels and token ids of every sample, made by the code that the runtime uses.

    Raises:
        ImageError: an image that cannot be read.
        ArgumentError: an empty prompt.
        ContextLengthError: no room for an answer behind a prompt.
    """
    encoder = load_tokenizer(tokenizer)
    questions = []
    for sample in job.parity_samples:
        text = encode_text(encoder, check_prompt(sample.prompt))
        turn = job.prompt.turn(text, [job.variants[0].tokens_per_tile])
        ids = [*job.prompt.system, *turn]
        room = job.language.max_positions - len(ids)
        if room < 1:
            raise ContextLengthError(
                f"the prompt about {sample.name} takes {len(ids)} tokens, and the model holds "
                f"{job.language.max_positions}, answer included. Ask a shorter question."
            )
        pixel_values = preprocess(load_image(sample.image), job.preprocessing)
        questions.append(Question(sample.name, pixel_values, ids, min(GREEDY_TOKENS, room)))
    return questions


def compare(
    job: ExportJob,
    engine: LoadedEngine,
    questions: Sequence[Question],
    on_image: Callable[[], None],
) -> ParityReport:
    """Hold an engine against the reference on every question.

    Args:
        on_image: called after each.

    Raises:
        ParityError: naming the comparison, the image and the figures of the first miss.
    """
    found = []
    for question in questions:
        found.append(_compare_one(job, engine, question))
        on_image()
    cosines = np.stack([one.cosines for one in found])  # [images, N']
    ties = tuple(one.tie for one in found if one.tie is not None)
    return ParityReport(
        Parity(
            images=len(found),
            visual_token_cosine_min=float(cosines.min()),
            visual_token_cosine_mean=float(cosines.mean()),
            logits_max_abs_difference=max(one.logits_difference for one in found),
            greedy_tokens=GREEDY_TOKENS,
            greedy_identical=len(found) - len(ties),
        ),
        ties,
    )


def compare_baseline(
    job: ExportJob, engine: LoadedEngine, encoder: ImageEncoder, questions: Sequence[Question]
) -> None:
    """Hold the visual tokens of a baseline against its torch module, on a few images.

    Raises:
        ParityError: naming the image and the figures of the first miss.
    """
    for question in questions[:BASELINE_IMAGES]:
        with torch.no_grad():
            expected = encoder.get_image_features(torch.from_numpy(question.pixel_values))
        features = engine.vision.encode(question.pixel_values)
        _check_visual_tokens(job, question, features, expected.numpy())


def _compare_one(job: ExportJob, engine: LoadedEngine, question: Question) -> _Found:
    reference, pixels, ids = job.reference, question.pixel_values, question.ids
    limit = question.max_new_tokens
    features = engine.vision.encode(pixels)  # [1, N', D]
    cosines = _check_visual_tokens(job, question, features, reference.image_features(pixels))

    embeds = engine.language.embed(ids)  # [sequence, D]
    embeds[np.asarray(ids) == job.prompt.image_token_id] = features[0]
    differences: list[float] = []

    def select(logits: Floats) -> int:
        if not differences:  # the first logits are those of the prefill
            differences.append(_check_logits(job, question, logits))
        return greedy(logits)

    engine.language.rewind(0)
    # No stop token: an answer of two tokens would leave the steps behind the prefill unseen.
    tokens = tuple(generate(engine.language, embeds, (), limit, select))
    return _Found(cosines, differences[0], _check_answer(job, question, tokens))


def _check_visual_tokens(
    job: ExportJob, question: Question, features: Floats, expected: Floats
) -> NDArray[np.float64]:
    """Cosine of every visual token with PyTorch's, [N']."""
    ours, theirs = features[0].astype(np.float64), expected[0].astype(np.float64)  # [N', D]
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    tiny = np.finfo(np.float64).tiny
    cosines: NDArray[np.float64] = (ours * theirs).sum(-1) / np.maximum(lengths, tiny)
    least, wanted = float(cosines.min()), TOLERANCES[job.precision].cosine_min
    if not least >= wanted:  # also where it is no number
        raise _miss(
            job,
            f"visual tokens of {question.name}",
            f"the least cosine is {least:.7f}, and at least {wanted} is asked for",
        )
    return cosines


def _check_logits(job: ExportJob, question: Question, logits: Floats) -> float:
    expected = job.reference.prefill_logits(question.pixel_values, question.ids)  # [V]
    difference, wanted = (
        float(np.abs(logits - expected).max()),
        TOLERANCES[job.precision].logits_max,
    )
    if not difference <= wanted:
        raise _miss(
            job,
            f"logits after the prompt about {question.name}",
            f"they differ by up to {difference:.3g}, and at most {wanted:g} is allowed",
        )
    return difference


def _check_answer(job: ExportJob, question: Question, tokens: tuple[int, ...]) -> str | None:
    """None for PyTorch's own answer; a sentence where the two part at a tie."""
    expected = job.reference.greedy(question.pixel_values, question.ids, question.max_new_tokens)
    if tokens == expected.tokens:
        return None
    part = next(
        (
            index
            for index, (ours, theirs) in enumerate(zip(tokens, expected.tokens, strict=False))
            if ours != theirs
        ),
        min(len(tokens), len(expected.tokens)),
    )
    margin = expected.margins[part] if part < len(expected.margins) else float("inf")
    where = f"from token {part + 1} on, where PyTorch's best two logits are {margin:.3g} apart"
    if margin < TIE_MARGIN:
        return f"the answer about {question.name} is another {where}: a tie."
    raise _miss(job, f"greedy answer about {question.name}", f"it is another {where}")


def _miss(job: ExportJob, what: str, figures: str) -> ParityError:
    return ParityError(
        f"{job.target} and PyTorch differ in the {what}: {figures}. "
        "No bundle was written. Try another version of the engine or another target."
    )


__all__ = [
    "GREEDY_TOKENS",
    "MIN_IMAGES",
    "TOLERANCES",
    "ParityReport",
    "Question",
    "Tolerance",
    "check_samples",
    "compare",
    "compare_baseline",
    "prepare",
]
