"""The lower rungs: pixels and the fp32 graphs against the PyTorch model.

PyTorch answers once, where the model is in memory anyway, into files; the graphs are asked later,
when that memory is free again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from laco_export.job import ExportJob
from laco_export.parity.answers import AnswerFiles, Answers, prompt_embeds
from laco_export.parity.measures import Figures, language_figures, visual_figures
from laco_export.parity.questions import Question, QuestionSet, token_layout
from laco_export.parity.thresholds import ROWS
from laco_export.protocols import Floats, ImageEncoder, Reference
from laco_runtimes.engines.base import LoadedEngine
from laco_runtimes.images import load_image
from laco_runtimes.visual import pixel_values, read_visuals

BASELINE_IMAGES = 2
"""Images on which the visual tokens of a baseline are compared. Its words mean nothing."""

STEPS_BEHIND = 2
"""Tokens of the answer that the check of the KV cache goes on for."""

PIXEL_IMAGES = 8
"""Images that also go through the checkpoint's processor."""


def pixel_figures(reference: Reference, job: ExportJob) -> Figures:
    """Pixel values of the runtime against those of the checkpoint's own processor."""
    figures = Figures({"pixels_max": 0.0})
    layout = token_layout(job)
    # Adversarial ones stand last, and are the ones on which resizing may differ.
    samples = job.parity_samples[:PIXEL_IMAGES] + job.parity_samples[-PIXEL_IMAGES:]
    for sample in samples:
        image = load_image(sample.image)
        theirs = reference.preprocess(np.asarray(image))
        [part] = read_visuals([image], job.preprocessing, layout)
        ours = pixel_values(part.squares, job.preprocessing)
        difference = math.inf  # of other tiles
        if ours.shape == theirs.shape:
            difference = float(np.abs(ours - theirs).max())
        if not difference <= figures.values["pixels_max"]:
            figures.values["pixels_max"] = difference
            figures.worst["pixels_max"] = sample.name
    return figures


def ask_pytorch(reference: Reference, asked: QuestionSet, folder: Path) -> Answers:
    """PyTorch's own answers to all questions, and what the KV cache is checked by.

    Args:
        reference: the model.
        asked: few: each costs a whole answer.
        folder: where to write; made.
    """
    files = AnswerFiles(folder, asked)
    for row, question in enumerate(asked.questions):
        pixels = asked.pixel_values(row)
        answer = reference.greedy(pixels, question.ids, question.tokens, question.size)
        files.features[asked.rows(row)] = answer.features
        files.tokens[row, : question.tokens] = answer.tokens
        files.logits[row, : question.tokens] = answer.logits
        if row == 0:  # now: its image need not be encoded again
            ids, positions = _cache_walk(question, asked.job, answer.tokens)
            logits = reference.logits_at(pixels, ids, positions, question.size)
            np.save(folder / "cache.npy", logits)
    return files.done()


def ask_baselines(encoders: Mapping[str, ImageEncoder], asked: QuestionSet, folder: Path) -> None:
    """PyTorch's visual tokens of every baseline, `<name>.npy` [tiles, N', D]."""
    import torch  # not above: the graphs are asked in a process without it

    folder.mkdir()
    for name, encoder in encoders.items():
        count = min(BASELINE_IMAGES, len(asked.questions))
        pixels = np.concatenate([asked.pixel_values(index) for index in range(count)])
        with torch.no_grad():
            features = encoder.get_image_features(torch.from_numpy(pixels))
        np.save(folder / f"{name}.npy", features.numpy())


def onnx_figures(
    engine: LoadedEngine, asked: QuestionSet, theirs: Answers, features: Floats, logits: Floats
) -> Figures:
    """The fp32 graphs against what `ask_pytorch` wrote.

    Args:
        engine: runs the fp32 graphs.
        asked: the questions that PyTorch answered.
        theirs: its answers.
        features: the graphs' own, behind the same tokens, [tiles, N', D].
        logits: the graphs' own, [answers, tokens, V].
    """
    names = [question.name for question in asked.questions]
    lengths = [question.tokens for question in asked.questions]
    visual = visual_figures(theirs.features, features, asked.tile_names)
    figures = language_figures(
        theirs.logits, logits, lengths, names, tie_margin=ROWS["fp32"].tie_margin
    )
    figures.values = {**visual.values, **figures.values}
    figures.worst = {**visual.worst, **figures.worst}
    expected = np.load(theirs.folder / "cache.npy", allow_pickle=False)
    walked = _walk(engine, asked, theirs, features[asked.rows(0)])
    figures.values["cache_max"] = float(np.abs(walked - expected).max())
    return figures


def _cache_walk(
    question: Question, job: ExportJob, answer: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Token ids of one question with the start of its answer, and the positions to compare at:
    the first two, the middle of the image, the end of the prompt, and single steps behind it."""
    ids = [*question.ids, *answer[: min(STEPS_BEHIND, question.tokens - 1)]]
    image = np.flatnonzero(np.asarray(question.ids) == job.prompt.image_token_id)
    end = len(question.ids) - 1
    positions = {0, 1, int(image[len(image) // 2]), end, *range(end + 1, len(ids))}
    return ids, sorted(positions)


def _walk(engine: LoadedEngine, asked: QuestionSet, answers: Answers, features: Floats) -> Floats:
    """Logits at the same positions, each piece behind what the KV cache holds, [positions, V]."""
    ids, positions = _cache_walk(asked.questions[0], asked.job, answers.tokens[0].tolist())
    embeds = prompt_embeds(engine, asked, 0, ids, features)
    engine.language.rewind(0)
    starts = [0, *(position + 1 for position in positions[:-1])]
    return np.stack(
        [
            engine.language.prefill(embeds[start : position + 1])
            for start, position in zip(starts, positions, strict=True)
        ]
    )


__all__ = ["BASELINE_IMAGES", "ask_baselines", "ask_pytorch", "onnx_figures", "pixel_figures"]
