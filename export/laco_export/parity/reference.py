"""The fp32 graphs on ONNX Runtime's CPU: what every engine is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laco_export.job import ExportJob
from laco_export.parity.answers import UNUSED, Answers, ask_together, prompt_embeds
from laco_export.parity.measures import cosines
from laco_export.parity.pytorch import onnx_figures
from laco_export.parity.questions import QuestionSet
from laco_export.parity.rows import Rows
from laco_export.parity.thresholds import ONNX_LIMITS
from laco_export.parity.verdict import judge, require
from laco_export.paths import decoder_path
from laco_export.protocols import Floats
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadedEngine, LoadRequest
from laco_runtimes.engines.onnxruntime import decoder_session
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import Check, EngineFacts, Noise, Variant


@dataclass(frozen=True, slots=True)
class Written:
    """What PyTorch has left behind for the stages that come without it."""

    answers: Answers
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """What the fp32 graphs say, and how far they are from PyTorch."""

    answers: Answers
    checks: tuple[Check, ...]


def load_source(job: ExportJob, root: Path, threads: int | None = None) -> LoadedEngine:
    """The fp32 graphs of a bundle that is being written."""
    facts = EngineFacts(
        target="onnxruntime",
        precision=dict.fromkeys(("vision_encoder", "embed_tokens", "decoder"), "fp32"),
        language=job.language,
        vision=job.vision,
        embed_tokens="onnx/embed_tokens.onnx",
        decoder=decoder_path(DecoderForm()),
    )
    trained = job.variants[0]
    variant = Variant(
        name=trained.name,
        mergers=trained.mergers,
        merged_grid=trained.merged_grid,
        vision_encoder="onnx/vision_encoder.onnx",
        latency_only=False,
    )
    return load_engine(LoadRequest(root, facts, variant, "cpu", threads, brief=True))


def ask_reference(
    asked: QuestionSet,
    root: Path,
    pytorch: Answers,
    known: Mapping[int, Floats],
    work: Path,
    step: Callable[[], None],
) -> ReferenceResult:
    """Ask the fp32 graphs everything, and hold them against PyTorch where it has answered.

    There they are fed its tokens, so that no question is asked twice.

    Args:
        asked: all questions.
        root: the bundle that is being written.
        pytorch: answers to `asked.some(asked.job.plan.pytorch)`.
        known: visual tokens that the graph has made of images already.
        work: where to write.
        step: called after each image.

    Raises:
        ParityError: the graphs do not answer as PyTorch does.
    """
    engine = load_source(asked.job, root)
    few = asked.some(asked.job.plan.pytorch)
    rows = [asked.answered.index(place) for place in few.places]
    forced = np.full((len(asked.answered), asked.longest), UNUSED)
    forced[rows, : few.longest] = pytorch.tokens
    batch = Rows(decoder_session(engine.language), asked.job.language)
    answers = ask_together(
        engine, batch, asked, work / "reference", step, forced=forced, known=known
    )
    features = np.concatenate([answers.features[asked.rows(place)] for place in few.places])
    logits = answers.logits[rows, : few.longest]
    figures = onnx_figures(engine, few, pytorch, features, logits)
    checks = judge("onnx", figures, ONNX_LIMITS)
    require(checks, "onnxruntime", figures.worst)
    return ReferenceResult(answers, checks)


def measure_noise(asked: QuestionSet, root: Path, answers: Answers) -> Noise:
    """How far the fp32 graphs are from themselves: asked once more, and with one thread.

    Args:
        asked: all questions; the first of them is asked.
        root: the bundle that is being written.
        answers: what the graphs said.
    """
    once = answers.features[asked.rows(0)], answers.logits[0, 0]
    again = _look(load_source(asked.job, root), asked)
    alone = _look(load_source(asked.job, root, threads=1), asked)
    return Noise(
        repeated_logits=_apart(once[1], again[1]),
        threads_logits=_apart(once[1], alone[1]),
        threads_cosine_min=float(cosines(once[0], alone[0]).min()),
    )


def _look(engine: LoadedEngine, asked: QuestionSet) -> tuple[Floats, Floats]:
    """Of the first question: features [tiles, N', D] and the logits after the prompt [V]."""
    ids = asked.questions[0].ids
    features = engine.vision.encode(asked.pixel_values(0))
    embeds = prompt_embeds(engine, asked, 0, ids, features)
    engine.language.rewind(0)
    return features, engine.language.prefill(embeds)


def _apart(one: Floats, other: Floats) -> float:
    return float(np.abs(one - other).max())


__all__ = ["ReferenceResult", "Written", "ask_reference", "load_source", "measure_noise"]
