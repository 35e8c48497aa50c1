"""The upper rung: the target engine against the fp32 graphs, and what is reported of it all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from laco_export.parity.answers import ask_engine
from laco_export.parity.measures import language_figures, visual_figures
from laco_export.parity.pytorch import BASELINE_IMAGES
from laco_export.parity.questions import QuestionSet
from laco_export.parity.reference import ReferenceResult
from laco_export.parity.thresholds import language_row, visual_row
from laco_export.parity.verdict import judge, require
from laco_export.precision import Precisions
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadedEngine, LoadRequest
from laco_runtimes.manifest import Check, EngineFacts, Parity, Variant


def compare_engine(
    asked: QuestionSet,
    engine: LoadedEngine,
    precisions: Precisions,
    reference: ReferenceResult,
    folder: Path,
    step: Callable[[], None],
) -> Parity:
    """Hold an engine against the fp32 graphs on every question.

    Args:
        asked: the questions.
        engine: runs the model as trained.
        precisions: what it was compiled in, for the limits.
        reference: answers of the fp32 graphs, and what was found out on the way to them.
        folder: where to write the engine's answers; made.
        step: called after each image.

    Raises:
        ParityError: naming the first stage that misses, and its figures.
    """
    theirs = reference.answers
    ours = ask_engine(engine, asked, folder, step, forced=theirs.tokens)
    answered = [asked.questions[index] for index in asked.answered]
    visual = visual_figures(theirs.features, ours.features, asked.tile_names)
    row = language_row(precisions)
    language = language_figures(
        theirs.logits,
        ours.logits,
        [question.tokens for question in answered],
        [question.name for question in answered],
        tie_margin=row.tie_margin,
    )
    checks = (
        *judge("vision_encoder", visual, visual_row(precisions).visual),
        *judge("language", language, row.language),
    )
    require(checks, asked.job.target, {**visual.worst, **language.worst})
    return Parity(
        images=len(asked.questions),
        adversarial_images=sum(question.adversarial for question in asked.questions),
        prompts=len({sample.prompt for sample in asked.job.parity_samples}),
        answered_images=len(answered),
        greedy_tokens=asked.longest,
        greedy_identical=language.identical,
        ties=language.ties,
        checks=(*reference.checks, *checks),
    )


def compare_baseline(
    asked: QuestionSet, engine: LoadedEngine, precisions: Precisions, expected: Path
) -> tuple[Check, ...]:
    """Hold the visual tokens of a baseline against its torch module, on a few images.

    Args:
        asked: the questions.
        engine: runs the baseline.
        precisions: what it was compiled in.
        expected: `.npy` of PyTorch's visual tokens, [tiles, N', D], of the first images.

    Raises:
        ParityError: naming the figures.
    """
    features = np.load(expected, allow_pickle=False)
    count = min(BASELINE_IMAGES, len(asked.questions))
    found = np.concatenate(
        [engine.vision.encode(asked.pixel_values(index)) for index in range(count)]
    )
    figures = visual_figures(features, found, asked.tile_names)
    checks = judge("vision_encoder", figures, visual_row(precisions).visual)
    require(checks, asked.job.target, figures.worst)
    return checks


def check_engine(
    asked: QuestionSet,
    root: Path,
    facts: EngineFacts,
    variants: tuple[Variant, ...],
    precisions: Precisions,
    reference: ReferenceResult,
    work: Path,
    step: Callable[[], None],
) -> Parity:
    """Load what was compiled and compare it, then every baseline.

    Args:
        root: the bundle that is being written.
        work: where to write; holds `baselines/<name>.npy`.

    Raises:
        ParityError: as `compare_engine` and `compare_baseline`.
    """

    def load(variant: Variant) -> LoadedEngine:
        return load_engine(LoadRequest(root, facts, variant, asked.job.device))

    folder = work / f"engine-{precisions}".replace(" ", "")
    parity = compare_engine(asked, load(variants[0]), precisions, reference, folder, step)
    for variant in variants[1:]:
        expected = work / "baselines" / f"{variant.name}.npy"
        compare_baseline(asked, load(variant), precisions, expected)
        step()
    return parity


__all__ = ["check_engine", "compare_baseline", "compare_engine"]
