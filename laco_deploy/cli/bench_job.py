"""The options of `laco bench` to what is measured: given ones, then `--repeat`, then defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laco_runtimes.errors import ArgumentError

if TYPE_CHECKING:
    from laco_deploy.benchmark.job import BenchPlan, Progress
    from laco_deploy.benchmark.repeat import Repetition
    from laco_deploy.benchmark.schema import BenchReport

PROMPT = "Describe the image."
RUNS, WARMUP = 10, 2
QUICK_TOKENS = (6, 32)
QUICK_SECONDS = 15.0
"""Of the 20 that `--quick` may take; the rest is for Python's imports, the table, and a last
request that takes longer than those before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options as they were given; None where they were not."""

    engine: Path | None
    ckpt: Path | None
    target: str | None
    sweep: tuple[str, ...]
    cache: Path | None
    repeat: Path | None
    quick: bool
    image: Path | None
    prompt: str | None
    new_tokens: str | None
    runs: int | None
    warmup: int | None
    device: str | None
    threads: int | None
    memory: bool | None
    energy: bool | None
    limits: bool | None


class Measurement:
    """What the options ask for, checked as far as that goes without loading anything.

    Raises:
        ArgumentError: options that do not go together, or a value out of range.
        ReportFileError: `repeat` cannot be read.
    """

    def __init__(self, options: Options) -> None:
        from laco_deploy.benchmark.repeat import Repetition

        _check(options)
        self.options = options
        self.repetition = None if options.repeat is None else Repetition(options.repeat)
        self.plan = _plan(options, self.repetition)
        self.engine = None if options.ckpt is not None else self._engine()
        self.remarks: list[str] = []
        """What to tell beside the report."""

    def run(self, progress: Progress) -> BenchReport:
        """Export what is missing, and measure.

        Raises:
            LacoError: nothing could be measured.
        """
        return self._run_bundle(progress) if self.engine is not None else self._run_sweep(progress)

    def _engine(self) -> Path:
        given = self.options.engine
        if self.repetition is not None:
            return self.repetition.engine(given)
        if given is None:
            raise ArgumentError(
                "nothing to measure is given. Name a bundle (laco bench engine/), a checkpoint "
                "(--ckpt) or an earlier measurement (--repeat)."
            )
        return given

    def _run_bundle(self, progress: Progress) -> BenchReport:
        from laco_deploy.benchmark.job import BenchJob
        from laco_deploy.benchmark.run import run_benchmark

        assert self.engine is not None
        variants = None
        if self.repetition is not None:
            variants = self.repetition.variants()
            if not self.repetition.is_same_bundle(self.engine):
                self.remarks.append("This is not the bundle that the first measurement was of.")
        plan = {item.name: getattr(self.plan, item.name) for item in fields(self.plan)}
        job = BenchJob(engine=self.engine, variants=variants, **plan)
        return run_benchmark(job, progress=progress)

    def _run_sweep(self, progress: Progress) -> BenchReport:
        from laco_deploy.benchmark.run import run_entrants
        from laco_deploy.benchmark.sweep import SweepJob, parse_axes, prepare_sweep

        options = self.options
        assert options.ckpt is not None
        if self.repetition is not None:
            job = self.repetition.sweep(options.ckpt, options.cache)
        else:
            assert options.target is not None
            job = SweepJob(
                checkpoint=options.ckpt,
                target=options.target,
                axes=parse_axes(options.sweep),
                cache=options.cache,
            )
        prepared = prepare_sweep(job, progress)
        report = run_entrants(
            prepared.entrants,
            self.plan,
            failed=prepared.failed,
            sweep=prepared.sweep,
            progress=progress,
        )
        before = None if self.repetition is None else self.repetition.report.settings.sweep
        if before is not None and before.checkpoint_sha256 != prepared.sweep.checkpoint_sha256:
            self.remarks.append("This is not the checkpoint that the first measurement was of.")
        return report


def parse_lengths(text: str) -> tuple[int, ...]:
    """Read `6,64,256`.

    Raises:
        ArgumentError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ArgumentError(f"'{text}' are no lengths of answers. Write --new-tokens 6,64,256.")
    return tuple(sorted({int(part) for part in parts}))


def _check(options: Options) -> None:
    if options.engine is not None and options.ckpt is not None:
        raise ArgumentError("a bundle and a checkpoint are given. Name one of the two.")
    for name, value in (("--sweep", options.sweep), ("--cache", options.cache)):
        if value and options.ckpt is None:
            raise ArgumentError(f"{name} is for a checkpoint. Name it with --ckpt.")
    if options.target is not None and (options.ckpt is None or options.repeat is not None):
        raise ArgumentError("--target is for --ckpt without --repeat. Leave it out.")
    if options.ckpt is not None and options.target is None and options.repeat is None:
        raise ArgumentError("a checkpoint is for every engine. Name one: --target openvino")
    if options.sweep and options.repeat is not None:
        raise ArgumentError("--repeat knows its sweep. Leave --sweep out.")
    if options.quick and options.repeat is not None:
        raise ArgumentError("--repeat knows how long it takes. Leave --quick out.")
    if options.quick and options.ckpt is not None:
        raise ArgumentError("--quick is for a bundle; exporting takes longer. Leave --quick out.")


def _plan(options: Options, repetition: Repetition | None) -> BenchPlan:
    """Given options, in their place those of an earlier measurement, in their place defaults.

    Raises:
        ArgumentError: a number out of range, or an empty prompt.
    """
    from laco_deploy.benchmark.job import NEW_TOKENS, BenchPlan

    lengths = None if options.new_tokens is None else parse_lengths(options.new_tokens)
    given: dict[str, Any] = {
        "prompt": options.prompt,
        "new_tokens": lengths,
        "runs": options.runs,
        "warmup": options.warmup,
        "device": options.device,
        "threads": options.threads,
        "memory": options.memory,
        "energy": options.energy,
        "limits": options.limits,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if repetition is not None:
        return replace(repetition.plan(options.image), **given)
    slow = not options.quick
    defaults: dict[str, Any] = {
        "image": options.image,
        "prompt": PROMPT,
        "new_tokens": NEW_TOKENS if slow else QUICK_TOKENS,
        "runs": RUNS,
        "warmup": WARMUP if slow else 1,
        "memory": slow,
        "energy": slow,
        "limits": slow,
        "max_seconds": None if slow else QUICK_SECONDS,
    }
    return BenchPlan(**defaults | given)


__all__ = ["Measurement", "Options", "parse_lengths"]
