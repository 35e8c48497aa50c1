"""A job to a sealed bundle: write the graphs, compile them, hold them against PyTorch, seal."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from laco_export.calibration import (
    Calibrated,
    calibration_images,
    check_calibration,
    write_calibration,
)
from laco_export.card import model_card
from laco_export.choices import choose
from laco_export.job import ExportJob
from laco_export.memory import LARGE_BYTES, available_bytes, forecast, readable
from laco_export.parity import questions
from laco_export.parity.plan import check_images
from laco_export.parity.reference import ReferenceResult, Written
from laco_export.parity.selftest import write_selftest
from laco_export.precision import Precisions
from laco_export.processes import StageRunner
from laco_export.progress import Progress, Watch, silent, stage
from laco_export.prune import prune_sources, remove_all_but
from laco_export.stages import (
    ask_again,
    ask_source,
    calibrate,
    compare,
    compile_module,
    compile_request,
)
from laco_export.targets import TARGETS, FinishRequest, TargetOptions, TargetType
from laco_export.versions import own_version, package_versions
from laco_export.writing import write_graphs, write_language, write_vision
from laco_runtimes.bundle import check_replaceable, open_bundle, replace_folder, seal_bundle
from laco_runtimes.errors import MissingPackageError, ParityError
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import (
    FORMAT_VERSION,
    MAIN_VARIANT,
    BundleFacts,
    EngineFacts,
    Manifest,
    Noise,
    Parity,
    Variant,
)
from laco_runtimes.workfolder import work_folder

logger = logging.getLogger("laco")

CARD_NAME = "README.md"

NOT_ASKED = "no images were compared, as was asked at export"
"""Why a bundle of an export without parity images is unverified."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A bundle that was written."""

    path: Path
    manifest: Manifest
    seconds: dict[str, float]
    """Time of every stage; some run at the same time, and none holds the start of its process."""
    peak_bytes: dict[str, int]
    """Most memory of the process that ran each stage; one process for all of a small model."""
    total_seconds: float
    """From the beginning to the end."""
    passed_over: tuple[str, ...] = ()
    """What a preset tried before, and how it missed."""
    calibrated: int = 0
    """Images that activations were calibrated on."""

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
        ArgumentError: an unknown target, precision or option, too few parity samples, no
            images to calibrate on, or an `out` that exists and is not a bundle.
        MissingPackageError: a package is not installed.
        ExportError: a graph cannot be written or compiled.
        ParityError: the engine does not answer as PyTorch does.
        EngineError: the engine cannot run the graphs here.
        DiskFullError: no room for the bundle.
    """
    target = check_target(job.target)
    candidates = target.precisions.candidates(
        job.precision, job.vision_precision, job.llm_precision
    )
    target.check_options(job.options)
    target.check_images(job.options, job.layout)
    check_images(sum(not one.adversarial for one in job.parity_samples), job.plan)
    check_calibration(job, target, candidates[0])
    out = out.resolve()
    check_replaceable(out)
    # The fp32 graphs, and what is compiled from them.
    needed = 2 * 4 * job.size.total
    with work_folder(out, needed_bytes=needed) as root:
        work = root.with_name("work")  # thrown away with the folder around both
        work.mkdir()
        return _Export(job, target, candidates, root, work, progress or silent).run(out)


def check_target(name: str) -> TargetType:
    """The target of that name, ready to be used.

    Raises:
        ArgumentError: an unknown target.
        MissingPackageError: its package is not installed, or the one of the reference.
    """
    target = choose("target", name, TARGETS)
    for package, extra in ((target.package, target.extra), ("onnxruntime", "export")):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, extra)
    return target


class _Export:
    """One export under way.

    Args:
        job: what to export.
        target: what for.
        candidates: precisions to be tried in turn.
        root: the bundle that is being written.
        work: answers and pixels; thrown away.
        progress: told of every step.
    """

    def __init__(
        self,
        job: ExportJob,
        target: TargetType,
        candidates: tuple[Precisions, ...],
        root: Path,
        work: Path,
        progress: Progress,
    ) -> None:
        self.job, self.target, self.candidates = job, target, candidates
        self.root, self.work = root, work
        self.calibrates = any(one.vision in target.calibrated for one in candidates)
        self.observes = self.calibrates and target.calibration == "ranges"
        self.unverified = target.check_runs() if job.parity_samples else NOT_ASKED
        self.calibrated = 0
        self.watch = Watch(progress, self._steps())
        large = 4 * job.size.total > LARGE_BYTES
        self.runner = StageRunner(self.watch, large if job.apart is None else job.apart)

    def run(self, out: Path) -> ExportResult:
        """All stages, in order."""
        begin = time.perf_counter()
        job, root, work = self.job, self.root, self.work
        self._foretell()
        for name, source in job.files.items():
            shutil.copyfile(source, root / name)
        asked = None
        if job.parity_samples:
            asked = questions.prepare(job, root, work / "squares")
        form = self.target.form(self.candidates[0], job.language, job.options)
        written = self._write(form, asked)
        calibrated = self._calibrate(asked)
        reference = None
        if asked is not None and written is not None:
            reference = self.runner.run(
                "reference", ask_source, asked, root, written, calibrated, work
            )
        facts, variants, parity, passed_over = self._try(asked, calibrated, reference)
        with stage(self.watch, "seal"):
            if asked is not None and reference is not None:
                write_selftest(root, asked, reference.answers, _precisions(facts))
            if not job.keep_source:
                prune_sources(root, facts, variants)
            sealed = BundleFacts(
                **facts.model_dump(),
                format_version=FORMAT_VERSION,
                created_by=f"laco-deploy {own_version()}",
                preprocessing=job.preprocessing,
                layout=job.layout,
                prompt=job.prompt,
                variants=variants,
                parity=parity,
                unverified=None if parity else self.unverified,
                versions={**package_versions(self.target), **job.versions},
            )
            (root / CARD_NAME).write_text(model_card(job.card, sealed), encoding="utf-8")
            seal_bundle(root, sealed)
            manifest = open_bundle(root).manifest
            replace_folder(root, out)
        return ExportResult(
            *(out, manifest, self.watch.seconds, self.watch.peak_bytes),
            total_seconds=time.perf_counter() - begin,
            passed_over=tuple(passed_over),
            calibrated=self.calibrated,
        )

    def _steps(self) -> int:
        job = self.job
        graphs = len(job.variants) + 2
        asked = len(job.parity_samples)
        compared = asked + len(job.variants) - 1 if self.unverified is None else 0
        reference = asked + 1 if asked else 0  # 1: ask PyTorch
        observed = 0
        if self.observes:
            observed = len(job.variants) * len(calibration_images(job))
        return 2 * graphs + observed + reference + compared + 1

    def _foretell(self) -> None:
        """Say how much memory it will take, where that is much, and use it where there is enough:
        stages that do not need each other then run at the same time."""
        if not self.runner.apart:
            return
        available = available_bytes()
        expected = forecast(self.job, calibrated=self.observes, beside=True)
        beside = available is not None and available > expected.peak
        if not beside:
            expected = forecast(self.job, calibrated=self.observes)
        self.runner = replace(self.runner, beside=beside)
        there = "" if available is None else f"; {readable(available)} are available"
        logger.info("the export will take about %s of memory%s", expected, there)
        if available is not None and expected.peak > available:
            logger.warning(
                "that is more than there is: the system may end the export. Close other programs."
            )

    def _write(self, form: DecoderForm, asked: questions.QuestionSet | None) -> Written | None:
        """The fp32 graphs, and what PyTorch says: in two processes, or from a model loaded once."""
        job, root, work, run = self.job, self.root, self.work, self.runner.run
        if not self.runner.beside:
            return run("graphs", write_graphs, job, form, root, work, asked)
        written, _ = self.runner.together(
            partial(run, "graphs", write_vision, job, root, work, asked),
            partial(run, "language graphs", write_language, job, form, root),
        )
        return written

    def _calibrate(self, asked: questions.QuestionSet | None) -> Calibrated:
        """Before anything else is asked: what is encoded here need not be encoded again."""
        job = self.job
        if not self.calibrates:
            return Calibrated()
        images = write_calibration(job, self.work / "calibration.npy")
        if self.observes:
            return self.runner.run("calibration", calibrate, job, self.root, images, asked)
        return Calibrated({source.name: images for source in job.variants})

    def _try(
        self,
        asked: questions.QuestionSet | None,
        calibrated: Calibrated,
        reference: ReferenceResult | None,
    ) -> tuple[EngineFacts, tuple[Variant, ...], Parity | None, list[str]]:
        """Compile the first candidate that parity allows."""
        passed_over: list[str] = []
        before = set(self.root.rglob("*"))
        noise: Noise | None = None

        def listen() -> None:
            nonlocal noise
            if noise is None and asked is not None and reference and self.unverified is None:
                noise = self.runner.run("noise", ask_again, asked, self.root, reference)

        for precisions in self.candidates:
            facts, variants = self._compile(precisions, calibrated, listen)
            if asked is None or reference is None or self.unverified is not None:
                return facts, variants, None, passed_over
            try:
                parity = self.runner.run(
                    "parity",
                    compare,
                    asked,
                    self.root,
                    facts,
                    variants,
                    precisions,
                    reference,
                    self.work,
                )
            except ParityError as error:
                if precisions == self.candidates[-1]:
                    raise
                passed_over.append(f"{precisions}: {error}")
                logger.info("%s is passed over: %s", precisions, error)
                remove_all_but(self.root, before)
            else:
                parity = parity.model_copy(update={"noise": noise})
                return facts, variants, parity, passed_over
        raise AssertionError("a menu of precisions has at least one candidate")

    def _compile(
        self, precisions: Precisions, calibrated: Calibrated, meanwhile: Callable[[], None]
    ) -> tuple[EngineFacts, tuple[Variant, ...]]:
        """Every graph to what the engine loads. A decoder usually takes longest: `meanwhile` is
        called behind the encoders."""
        job, root = self.job, self.root
        form = self.target.form(precisions, job.language, job.options)
        files = calibrated.files if precisions.vision in self.target.calibrated else {}
        self.calibrated = len(calibration_images(job)) if files else 0

        def made(label: str, **what: object) -> str:
            module = label.partition(" ")[0]
            request = compile_request(job, precisions, root, module, **what)  # type: ignore[arg-type]
            return self.runner.run(
                f"compile {module}", compile_module, self.target.name, request, label
            )

        def encoders() -> tuple[str, ...]:
            paths = tuple(
                made(
                    "vision_encoder" + ("" if source.name == MAIN_VARIANT else f" ({source.name})"),
                    source=source,
                    calibration=files.get(source.name),
                )
                for source in job.variants
            )
            meanwhile()
            return paths

        def language() -> tuple[str, ...]:
            return made("embed_tokens"), made("decoder", form=form)

        paths, (embed_tokens, decoder) = self.runner.together(encoders, language)
        variants = tuple(
            Variant(
                name=source.name,
                mergers=source.mergers,
                merged_grid=source.merged_grid,
                vision_encoder=path,
                latency_only=source.name != MAIN_VARIANT,
            )
            for source, path in zip(job.variants, paths, strict=True)
        )
        facts = self._facts(precisions, form, embed_tokens, decoder)
        self.target.finish(
            FinishRequest(
                root=root,
                facts=facts,
                variants=variants,
                preprocessing=job.preprocessing,
                layout=job.layout,
                prompt=job.prompt,
                options=job.options,
            )
        )
        return facts, variants

    def _facts(
        self, precisions: Precisions, form: DecoderForm, embed_tokens: str, decoder: str
    ) -> EngineFacts:
        return EngineFacts(
            target=self.target.name,
            precision={
                "vision_encoder": precisions.of("vision_encoder"),
                "embed_tokens": precisions.of("embed_tokens"),
                "decoder": precisions.of("decoder"),
            },
            language=self.job.language,
            vision=self.job.vision,
            embed_tokens=embed_tokens,
            decoder=decoder,
            decoder_flavour=form.flavour,
            cache_dtype=form.cache_dtype,
            cache_capacity=form.capacity,
        )


def _precisions(facts: EngineFacts) -> Precisions:
    return Precisions(facts.precision["vision_encoder"], facts.precision["decoder"])


__all__ = ["ExportResult", "Progress", "TargetOptions", "check_target", "export_bundle"]
