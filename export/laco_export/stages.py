"""The stages of an export behind its first, which may run in processes of their own.

Nothing here imports torch or the code of a model: in a process of its own that would take longer
than some of the stages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from laco_export.calibration import Calibrated, also_asked
from laco_export.job import ExportJob, VariantSource
from laco_export.parity.engine import check_engine
from laco_export.parity.questions import QuestionSet
from laco_export.parity.reference import (
    ReferenceResult,
    Written,
    ask_reference,
    measure_noise,
)
from laco_export.paths import decoder_path, encoder_folder
from laco_export.precision import Module, Precisions
from laco_export.progress import Steps, stage
from laco_export.ranges import measure_ranges
from laco_export.targets import TARGETS, CompileRequest
from laco_runtimes import graphs
from laco_runtimes.graphs import DecoderForm, GraphSpec
from laco_runtimes.manifest import MAIN_VARIANT, EngineFacts, Noise, Parity, Variant


def calibrate(
    steps: Steps, job: ExportJob, root: Path, images: Path, asked: QuestionSet | None
) -> Calibrated:
    """Ranges of activations of every encoder, over the images of `write_calibration`.

    Raises:
        ExportError: the images cause something that is no number.
    """
    with stage(steps, "calibration", count=0):
        pixels = np.load(images, mmap_mode="r", allow_pickle=False)  # [images, 3, S, S]
        files, known = {}, {}
        for source in job.variants:
            files[source.name] = path = images.with_name(f"ranges-{source.name}.npz")
            graph = root / encoder_folder(source.name) / "vision_encoder.onnx"
            features = measure_ranges(graph, pixels, path, steps.step)
            if source.name == MAIN_VARIANT and asked is not None:
                known = {
                    index: features[place : place + 1]
                    for index, place in also_asked(asked, pixels).items()
                }
        return Calibrated(files, known)


def ask_source(
    steps: Steps,
    asked: QuestionSet,
    root: Path,
    written: Written,
    calibrated: Calibrated,
    work: Path,
) -> ReferenceResult:
    """The fp32 graphs on ONNX Runtime: against PyTorch, then as the reference of the engine.

    Raises:
        ParityError: they do not answer as PyTorch does.
    """
    with stage(steps, "reference", count=0):
        result = ask_reference(asked, root, written.answers, calibrated.known, work, steps.step)
    return ReferenceResult(result.answers, (*written.checks, *result.checks))


def ask_again(steps: Steps, asked: QuestionSet, root: Path, reference: ReferenceResult) -> Noise:
    """How far the fp32 graphs are from themselves."""
    with stage(steps, "noise", count=0):
        return measure_noise(asked, root, reference.answers)


def compile_module(steps: Steps, target: str, request: CompileRequest, label: str) -> str:
    """One graph to what the engine loads; its path in the bundle.

    Raises:
        ExportError: the target refuses it.
    """
    with stage(steps, f"compile {label}"):
        return TARGETS[target].compile(request)


def compile_request(
    job: ExportJob,
    precisions: Precisions,
    root: Path,
    module: Module,
    *,
    source: VariantSource | None = None,
    form: DecoderForm | None = None,
    calibration: Path | None = None,
) -> CompileRequest:
    """What a target is told about one graph: an encoder with `source`, the decoder with `form`."""
    spec: GraphSpec
    path = f"onnx/{module}.onnx"
    if source is not None:
        spec = graphs.vision_encoder(
            job.vision.image_size, source.tokens_per_tile, job.language.hidden_size
        )
        path = f"{encoder_folder(source.name)}/{module}.onnx"
    elif form is not None:
        spec, path = graphs.decoder(job.language, form), decoder_path(form)
    else:
        spec = graphs.embed_tokens(job.language.hidden_size)
    return CompileRequest(
        root=root,
        onnx=path,
        spec=spec,
        language=job.language,
        vision=job.vision,
        precision=precisions.of(module),
        calibration=calibration,
        form=form,
        options=job.options,
    )


def compare(
    steps: Steps,
    asked: QuestionSet,
    root: Path,
    facts: EngineFacts,
    variants: tuple[Variant, ...],
    precisions: Precisions,
    reference: ReferenceResult,
    work: Path,
) -> Parity:
    """The engine against the fp32 graphs.

    Raises:
        ParityError: it does not answer as they do.
        EngineError: it does not run.
    """
    with stage(steps, "parity", count=0):
        return check_engine(asked, root, facts, variants, precisions, reference, work, steps.step)


__all__ = [
    "ask_again",
    "ask_source",
    "calibrate",
    "compare",
    "compile_module",
    "compile_request",
]
