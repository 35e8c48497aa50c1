"""The first stage of an export: a model to its graphs in fp32, and to PyTorch's own answers.

Apart from the other stages, which need neither torch nor the model's code and begin sooner without.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from laco_export.flavours import FLAVOURS
from laco_export.graphs import DecoderGraph, EmbedGraph, VisionGraph
from laco_export.job import ExportJob, Modules, VariantSource
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_export.parity.pytorch import ask_baselines, ask_pytorch, pixel_figures
from laco_export.parity.questions import QuestionSet
from laco_export.parity.reference import Written
from laco_export.parity.thresholds import PIXELS_MAX
from laco_export.parity.verdict import judge, require
from laco_export.paths import SOURCE_FLAVOUR, encoder_folder
from laco_export.progress import Steps, stage
from laco_runtimes import graphs
from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import MAIN_VARIANT
from laco_runtimes.newline import write_newline


def write_graphs(
    steps: Steps,
    job: ExportJob,
    form: DecoderForm,
    root: Path,
    work: Path,
    asked: QuestionSet | None,
) -> Written | None:
    """Load the model, write its graphs in fp32, and let it answer what they will be held against.

    Args:
        steps: told of every graph.
        job: loads the model.
        form: of the decoder that the target compiles, beside the stateful one.
        root: the bundle that is being written.
        work: for answers.
        asked: None where nothing is to be compared.

    Raises:
        ExportError: a graph cannot be written.
        ParityError: the runtime makes other pixels than the checkpoint's processor.
    """
    modules = _load(steps, job)
    _write_vision(steps, job, modules, root)
    _write_language(steps, job, modules, form, root)
    return _ask(steps, job, modules, work, asked)


def write_vision(
    steps: Steps, job: ExportJob, root: Path, work: Path, asked: QuestionSet | None
) -> Written | None:
    """The part of `write_graphs` that `write_language` does not do: encoders, PyTorch's answers."""
    modules = _load(steps, job)
    _write_vision(steps, job, modules, root)
    return _ask(steps, job, modules, work, asked)


def write_language(steps: Steps, job: ExportJob, form: DecoderForm, root: Path) -> None:
    """The embeddings and the decoder alone."""
    _write_language(steps, job, _load(steps, job), form, root)


def _load(steps: Steps, job: ExportJob) -> Modules:
    with stage(steps, "load", count=0):
        return job.load()


def _write_vision(steps: Steps, job: ExportJob, modules: Modules, root: Path) -> None:
    if modules.newline is not None:
        write_newline(root, modules.newline)
    for source in job.variants:
        trained = source.name == MAIN_VARIANT
        with stage(steps, f"write vision_encoder{'' if trained else f' ({source.name})'}"):
            _write_encoder(job, modules, source, root)


def _write_language(
    steps: Steps, job: ExportJob, modules: Modules, form: DecoderForm, root: Path
) -> None:
    with stage(steps, "write embed_tokens"):
        spec = graphs.embed_tokens(job.language.hidden_size)
        write_graph(EmbedGraph(modules.body.embed_tokens), spec, root / "onnx")
    with stage(steps, "write decoder"):
        _write_decoder(job, modules, DecoderForm(SOURCE_FLAVOUR), root)
        if form.flavour != SOURCE_FLAVOUR:
            _write_decoder(job, modules, form, root)


def _ask(
    steps: Steps, job: ExportJob, modules: Modules, work: Path, asked: QuestionSet | None
) -> Written | None:
    if asked is None:
        return None
    with stage(steps, "ask PyTorch"):
        figures = pixel_figures(modules.reference, job)
        checks = judge("preprocessing", figures, {"pixels_max": ("at most", PIXELS_MAX)})
        require(checks, job.target, figures.worst)
        answers = ask_pytorch(modules.reference, asked.some(job.plan.pytorch), work / "pytorch")
        others = {name: one for name, one in modules.encoders.items() if name != MAIN_VARIANT}
        ask_baselines(others, asked, work / "baselines")
    return Written(answers, checks)


def _write_encoder(job: ExportJob, modules: Modules, source: VariantSource, root: Path) -> None:
    encoder = modules.encoders[source.name]
    if not isinstance(encoder, nn.Module):
        raise ExportError("an encoder to export must be a torch module. Wrap it in one.")
    spec = graphs.vision_encoder(
        job.vision.image_size, source.tokens_per_tile, job.language.hidden_size
    )
    folder = root / encoder_folder(source.name)
    write_graph(VisionGraph(encoder), spec, folder, allowed_ops=ENCODER_OPS)


def _write_decoder(job: ExportJob, modules: Modules, form: DecoderForm, root: Path) -> None:
    """In float32, the cache too, whatever type the engine will keep it in."""
    flavour = FLAVOURS[form.flavour]
    plain = DecoderForm(form.flavour, capacity=form.capacity)
    module = DecoderGraph(
        modules.body,
        modules.head,
        head_dim=job.language.head_dim,
        rope_theta=job.rope_theta,
        flavour=form.flavour,
        positions=flavour.positions(job.language, plain),
    )
    folder = root / "onnx"
    source = form.flavour == SOURCE_FLAVOUR
    write_graph(
        module,
        flavour.spec(job.language, plain),
        folder,
        opset=flavour.opset,
        stem=flavour.stem,
        share=None if source else folder / f"{FLAVOURS[SOURCE_FLAVOUR].stem}.onnx",
    )


__all__ = ["write_graphs", "write_language", "write_vision"]
