"""A whole benchmark: open a bundle, measure each of its variants, fill in the report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from laco_deploy.benchmark.machine import describe_machine
from laco_deploy.benchmark.measure import measure
from laco_deploy.benchmark.memory import peak_memory
from laco_deploy.benchmark.picture import read_picture
from laco_deploy.benchmark.request import Clock, Contender, Workload, check_room, load_contender
from laco_deploy.benchmark.schema import (
    BASELINE,
    BenchReport,
    BundleIdentity,
    Settings,
    VariantResult,
)
from laco_deploy.benchmark.statistics import distribution, paired_speedup
from laco_runtimes.bundle import Bundle, open_bundle
from laco_runtimes.engines import ENGINES
from laco_runtimes.errors import ArgumentError, EngineError
from laco_runtimes.manifest import MANIFEST_NAME, Variant
from laco_runtimes.prompt import check_prompt
from laco_runtimes.reply import Timings

SEED = 0

Progress = Callable[[str, int, int], None]
"""Told (what is under way, steps done, steps in all)."""

Memory = tuple[int | None, str | None]
"""(peak in bytes, why it is not known)."""

NOT_ASKED: Memory = (None, "not asked for")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob:
    """What to measure.

    Raises:
        ArgumentError: a number out of range, or an empty prompt.
    """

    engine: Path
    """Bundle folder."""
    image: Path | None = None
    """Image file; None for a synthetic picture."""
    prompt: str
    new_tokens: int
    """Length of every answer; stop tokens do not end it."""
    runs: int
    """Rounds of one request per variant."""
    warmup: int
    """Requests per variant before the first round."""
    device: str = "auto"
    threads: int | None = None
    """CPU threads per inference; None leaves it to the engine."""
    memory: bool = True
    """Whether to find each variant's peak memory, which loads it once more."""

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        for name, value, least in (
            ("new tokens", self.new_tokens, 1),
            ("runs", self.runs, 1),
            ("warmup", self.warmup, 0),
            ("threads", 1 if self.threads is None else self.threads, 1),
        ):
            if value < least:
                raise ArgumentError(f"{name} cannot be {value}. Give {least} or more.")


@dataclass(frozen=True, slots=True)
class _Measured:
    timings: dict[str, list[Timings]]
    visual_tokens: dict[str, int]
    prompt_tokens: dict[str, int]
    device: str
    reason: str


def run_benchmark(
    job: BenchJob,
    *,
    progress: Progress = lambda what, done, total: None,
    clock: Clock = time.perf_counter_ns,
) -> BenchReport:
    """Measure every variant of a bundle on this machine.

    Raises:
        BundleError, ImageError: the bundle or the image cannot be used.
        ContextLengthError: the longest variant's prompt and answer do not fit in the context.
        MissingPackageError, EngineError: the engine is not installed, refused, or would run the
            variants on different devices.
    """
    bundle = open_bundle(job.engine)
    data, image = read_picture(job.image)
    workload = Workload(data, job.prompt, job.new_tokens, job.device, job.threads)
    check_room(bundle, workload)
    engine = ENGINES.get(bundle.manifest.target)  # None is refused when it is loaded
    machine = describe_machine(engine.package if engine else bundle.manifest.target)
    measured = _measure(bundle, workload, job, progress, clock)
    memory = _memory(bundle, workload, progress) if job.memory else {}
    return BenchReport(
        schema_version=1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=_identify(bundle),
        machine=machine,
        settings=Settings(
            engine=bundle.manifest.target,
            device=measured.device,
            device_requested=job.device,
            device_reason=measured.reason,
            threads=job.threads,
            image=image,
            prompt=job.prompt,
            new_tokens=job.new_tokens,
            runs=job.runs,
            warmup=job.warmup,
            seed=SEED,
        ),
        results=tuple(
            _result(variant, measured, memory.get(variant.name, NOT_ASKED))
            for variant in sorted(bundle.manifest.variants, key=lambda one: one.name == BASELINE)
        ),
    )


def _measure(
    bundle: Bundle, workload: Workload, job: BenchJob, progress: Progress, clock: Clock
) -> _Measured:
    """Load all variants into this process, each as a `Pipeline` would, and time them."""
    variants = bundle.manifest.variants
    contenders = []
    for number, variant in enumerate(variants):
        progress("loading", number, len(variants))
        contenders.append(load_contender(bundle, variant, workload))
    progress("loading", len(variants), len(variants))
    _check_one_device(contenders)

    done, total = 0, len(variants) * (job.warmup + job.runs)
    progress("measuring", done, total)

    def advance() -> None:
        nonlocal done
        done += 1
        progress("measuring", done, total)

    timings = measure(
        contenders, runs=job.runs, warmup=job.warmup, seed=SEED, clock=clock, advance=advance
    )
    visual_tokens = {one.variant.name: one.read_image().tokens for one in contenders}
    return _Measured(
        timings=timings,
        visual_tokens=visual_tokens,
        prompt_tokens={
            one.variant.name: len(one.prompt_ids(visual_tokens[one.variant.name]))
            for one in contenders
        },
        device=contenders[0].engine.device,
        reason=contenders[0].engine.reason,
    )


def _check_one_device(contenders: Sequence[Contender]) -> None:
    """`auto` decides for each variant by itself, and with less memory left maybe otherwise."""
    devices = {contender.engine.device for contender in contenders}
    if len(devices) > 1:
        raise EngineError(
            f"the variants were loaded on different devices ({', '.join(sorted(devices))}) and "
            "cannot be compared. Name one with --device."
        )


def _memory(bundle: Bundle, workload: Workload, progress: Progress) -> dict[str, Memory]:
    """Peak memory per variant; after the timings, when their engines are gone again."""
    variants = bundle.manifest.variants
    found = {}
    for number, variant in enumerate(variants):
        progress("peak memory", number, len(variants))
        found[variant.name] = peak_memory(bundle, variant, workload)
    progress("peak memory", len(variants), len(variants))
    return found


def _result(variant: Variant, measured: _Measured, memory: Memory) -> VariantResult:
    own = measured.timings[variant.name]
    baseline = measured.timings.get(BASELINE)
    per_token = [timings.tpot_ms for timings in own if timings.tpot_ms is not None]
    return VariantResult(
        name=variant.name,
        latency_only=variant.latency_only,
        visual_tokens=measured.visual_tokens[variant.name],
        prompt_tokens=measured.prompt_tokens[variant.name],
        preprocess_ms=distribution([timings.preprocess_ms for timings in own]),
        vision_encode_ms=distribution([timings.vision_encode_ms for timings in own]),
        embed_ms=distribution([timings.embed_ms for timings in own]),
        prefill_ms=distribution([timings.prefill_ms for timings in own]),
        ttft_ms=distribution([timings.ttft_ms for timings in own]),
        tpot_ms=distribution(per_token) if per_token else None,
        request_ms=distribution([timings.request_ms for timings in own]),
        tokens_per_second=distribution([timings.tokens_per_second for timings in own]),
        peak_memory_bytes=memory[0],
        peak_memory_note=memory[1],
        speedup_over_uncompressed=None if baseline is None else paired_speedup(baseline, own),
    )


def _identify(bundle: Bundle) -> BundleIdentity:
    return BundleIdentity(
        name=bundle.root.name.encode(errors="replace").decode(),
        manifest_sha256=hashlib.sha256((bundle.root / MANIFEST_NAME).read_bytes()).hexdigest(),
        target=bundle.manifest.target,
        precision=bundle.manifest.precision,
    )


__all__ = ["BenchJob", "Progress", "run_benchmark"]
