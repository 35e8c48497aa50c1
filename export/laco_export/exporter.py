"""A job to a sealed bundle: write the graphs, compile them, hold them against PyTorch, seal."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from torch import nn

from laco_export import parity
from laco_export.card import model_card
from laco_export.choices import choose
from laco_export.graphs import DecoderGraph, EmbedGraph, VisionGraph
from laco_export.job import ExportJob, VariantSource
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_export.parity import ParityReport
from laco_export.targets import TARGETS, CompileRequest, TargetType
from laco_runtimes import graphs
from laco_runtimes.bundle import check_replaceable, open_bundle, replace_folder, seal_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadedEngine, LoadRequest
from laco_runtimes.errors import ExportError, MissingPackageError
from laco_runtimes.graphs import GraphSpec
from laco_runtimes.manifest import (
    MAIN_VARIANT,
    TOKENIZER_NAME,
    BundleFacts,
    EngineFacts,
    Manifest,
    Variant,
)

Progress = Callable[[str, int, int], None]
"""Called with the stage under way, and how many steps of how many are done."""

CARD_NAME = "README.md"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A bundle that was written."""

    path: Path
    manifest: Manifest
    parity: ParityReport
    seconds: dict[str, float]
    """Time of every stage."""

    @property
    def size_bytes(self) -> int:
        """Size of all files of the bundle."""
        return sum(entry.size for entry in self.manifest.files)


def export_bundle(job: ExportJob, out: Path, progress: Progress | None = None) -> ExportResult:
    """Write the bundle of a job to `out`.

    It is made in a hidden folder beside `out` and moved into place when it is complete, compared
    with PyTorch and verified; whatever goes wrong before, `out` stays as it was.

    Args:
        job: what to export.
        out: folder of the bundle. An older bundle there is replaced.
        progress: told of every step.

    Raises:
        ArgumentError: an unknown target or precision, too few parity samples, or an `out` that
            exists and is not a bundle.
        MissingPackageError: the target's package is not installed.
        ExportError: a graph cannot be written or compiled.
        ParityError: the engine does not answer as PyTorch does.
        EngineError: the engine cannot run the graphs here.
    """
    target = check_target(job.target, job.precision)
    parity.check_samples(job.parity_samples)
    out = out.resolve()
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    steps = 2 * (len(job.variants) + 2) + len(job.parity_samples) + len(job.variants)
    watch = _Watch(progress or _silent, steps)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder.chmod(0o755)
        for name, source in job.files.items():
            shutil.copyfile(source, folder / name)
        questions = parity.prepare(job, folder / TOKENIZER_NAME)
        facts, variants = _write_graphs(job, target, folder, watch)
        report = _check_parity(job, folder, facts, variants, questions, watch)
        with watch.stage("seal"):
            sealed = BundleFacts(
                **facts.model_dump(),
                format_version=1,
                created_by=f"laco-deploy {_own_version()}",
                preprocessing=job.preprocessing,
                prompt=job.prompt,
                variants=variants,
                parity=report.parity,
                versions={**_versions(target), **job.versions},
            )
            (folder / CARD_NAME).write_text(model_card(job.card, sealed, report), encoding="utf-8")
            seal_bundle(folder, sealed)
            manifest = open_bundle(folder).manifest
            replace_folder(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ExportResult(out, manifest, report, watch.seconds)


def check_target(name: str, precision: str) -> TargetType:
    """The target of that name, ready to be used.

    Raises:
        ArgumentError: an unknown target, or a precision it has not.
        MissingPackageError: its package is not installed.
    """
    target = choose("target", name, TARGETS)
    target.precisions.candidates(precision)
    if importlib.util.find_spec(target.package) is None:
        raise MissingPackageError(target.package, target.extra)
    return target


def _write_graphs(
    job: ExportJob, target: TargetType, folder: Path, watch: _Watch
) -> tuple[EngineFacts, tuple[Variant, ...]]:
    """Write and compile every graph; what the engine loads comes back as facts."""

    def make(module: nn.Module, spec: GraphSpec, where: str, label: str) -> str:
        allowed = ENCODER_OPS if isinstance(module, VisionGraph) else None
        with watch.stage(f"write {label}"):
            path = write_graph(module, spec, folder / where, allowed_ops=allowed)
        onnx = path.relative_to(folder).as_posix()
        with watch.stage(f"compile {label}"):
            return target.compile(
                CompileRequest(
                    root=folder,
                    onnx=onnx,
                    spec=spec,
                    language=job.language,
                    vision=job.vision,
                    precision=job.precision,
                )
            )

    def encoder(source: VariantSource) -> str:
        spec = graphs.vision_encoder(
            job.vision.image_size, source.tokens_per_tile, job.language.hidden_size
        )
        trained = source.name == MAIN_VARIANT
        where = "onnx" if trained else f"baseline/{source.name}"
        label = spec.name if trained else f"{spec.name} ({source.name})"
        return make(VisionGraph(_module(source.encoder)), spec, where, label)

    variants = tuple(
        Variant(
            name=source.name,
            mergers=source.mergers,
            merged_grid=source.merged_grid,
            vision_encoder=encoder(source),
            latency_only=source.name != MAIN_VARIANT,
        )
        for source in job.variants
    )
    embedding = graphs.embed_tokens(job.language.hidden_size)
    decoder = graphs.decoder(job.language)
    wrapped = DecoderGraph(
        job.body, job.head, head_dim=job.language.head_dim, rope_theta=job.rope_theta
    )
    facts = EngineFacts(
        target=target.name,
        precision=dict.fromkeys(("vision_encoder", "embed_tokens", "decoder"), job.precision),
        language=job.language,
        vision=job.vision,
        embed_tokens=make(EmbedGraph(job.body.embed_tokens), embedding, "onnx", embedding.name),
        decoder=make(wrapped, decoder, "onnx", decoder.name),
    )
    return facts, variants


def _check_parity(
    job: ExportJob,
    folder: Path,
    facts: EngineFacts,
    variants: tuple[Variant, ...],
    questions: list[parity.Question],
    watch: _Watch,
) -> ParityReport:
    def load(variant: Variant) -> LoadedEngine:
        return load_engine(LoadRequest(folder, facts, variant, job.device))

    with watch.stage("parity", steps=0):
        report = parity.compare(job, load(variants[0]), questions, watch.step)
    for source, variant in zip(job.variants[1:], variants[1:], strict=True):
        with watch.stage(f"parity ({source.name})"):
            parity.compare_baseline(job, load(variant), source.encoder, questions)
    return report


@dataclass(slots=True)
class _Watch:
    """Tells the caller where the export stands and notes how long each stage took."""

    progress: Progress
    total: int
    done: int = 0
    name: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, steps: int = 1) -> Iterator[None]:
        self.name = name
        self.progress(name, self.done, self.total)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.done += 1
        self.progress(self.name, self.done, self.total)


def _silent(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


def _module(encoder: object) -> nn.Module:
    if not isinstance(encoder, nn.Module):
        raise ExportError("an encoder to export must be a torch module. Wrap it in one.")
    return encoder


def _versions(target: TargetType) -> dict[str, str]:
    # From the modules: the distribution of a package may have another name (onnxruntime-gpu).
    packages = ("torch", "onnx", "onnxscript", target.package)
    # Without the build that OpenVINO adds: 2026.4.1-22982-e213a147257-releases/2026/4.
    return {
        name: str(importlib.import_module(name).__version__).partition("-")[0] for name in packages
    }


def _own_version() -> str:
    try:
        return metadata.version("laco-deploy")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "0+source"


__all__ = ["ExportResult", "Progress", "check_target", "export_bundle"]
