"""A whole benchmark: load what takes part, measure it, fill in the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from laco_deploy.benchmark.extras import beside_limits, measure_energy, start_afresh
from laco_deploy.benchmark.fit import fits_of
from laco_deploy.benchmark.fresh import Fresh
from laco_deploy.benchmark.job import BenchJob, BenchPlan, Entrant, Progress, entrants_of
from laco_deploy.benchmark.limits_schema import Limits
from laco_deploy.benchmark.load import load_entrants, nothing_left
from laco_deploy.benchmark.machine import describe_machine
from laco_deploy.benchmark.measure import Deadline, message_of, time_rounds, warm_up
from laco_deploy.benchmark.picture import read_picture
from laco_deploy.benchmark.quality import Snapshot, clock_cost_ns, quality
from laco_deploy.benchmark.request import Clock, Contender, RequestTimes, Workload, fitting
from laco_deploy.benchmark.results import Energy, Found, bundle_identities, variant_result
from laco_deploy.benchmark.schema import (
    BASELINE,
    BenchReport,
    ImageIdentity,
    Quality,
    Settings,
    Sweep,
    VariantResult,
)
from laco_deploy.benchmark.statistics import drift
from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import ENGINES

NO_BASELINE = "the bundle has no such variant; export it with --baseline uncompressed"


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the process in which all are loaded found."""

    times: dict[str, list[RequestTimes]]
    only_first: bool
    """Whether these are the first requests, for want of time."""
    tiles: dict[str, int]
    visual_tokens: dict[str, int]
    prompt_tokens: dict[str, int]
    device: str
    reason: str
    before: Snapshot
    after: Snapshot
    clock_read_ns: float
    energy: dict[str, Energy] = field(default_factory=dict)


def run_benchmark(
    job: BenchJob,
    *,
    progress: Progress = lambda what, done, total: None,
    clock: Clock = time.perf_counter_ns,
) -> BenchReport:
    """Measure the variants of one bundle on this machine.

    Raises:
        BundleError: the bundle cannot be used.
        LacoError: as `run_entrants`.
    """
    deadline = Deadline(job.max_seconds, clock)
    bundle = open_bundle(job.engine)
    entrants = entrants_of(bundle, job.variants)
    missing = {} if any(one.name == BASELINE for one in entrants) else {BASELINE: NO_BASELINE}
    return run_entrants(
        entrants, job, failed=missing, progress=progress, clock=clock, deadline=deadline
    )


def run_entrants(
    entrants: Sequence[Entrant],
    plan: BenchPlan,
    *,
    failed: Mapping[str, str] | None = None,
    sweep: Sweep | None = None,
    progress: Progress = lambda what, done, total: None,
    clock: Clock = time.perf_counter_ns,
    deadline: Deadline | None = None,
) -> BenchReport:
    """Measure variants of one or more bundles of the same target, all in this process.

    What fails is left out and named in the report, as long as anything is left to report.

    Args:
        failed: what is missing already, and why.
        sweep: what the bundles are points of.
        deadline: begun before; None begins `plan.max_seconds` now.

    Raises:
        ImageError: the image cannot be used.
        ContextLengthError: not even the shortest answer fits in the context.
        MissingPackageError, EngineError: the engine is not installed, every variant failed, or
            they would run on different devices.
    """
    data, image = read_picture(plan.image)
    lengths = tuple(sorted(set(plan.new_tokens)))
    workload = Workload(data, plan.prompt, lengths, plan.device, plan.threads)
    rooms = [(one.bundle.manifest, one.bundle.tokenizer, one.variant) for one in entrants]
    workload = replace(workload, new_tokens=fitting(rooms, workload))
    target = entrants[0].bundle.manifest.target
    engine = ENGINES.get(target)  # None is refused when it is loaded
    machine = describe_machine(engine.package if engine else target)
    missing = dict(failed or {})
    deadline = deadline or Deadline(plan.max_seconds, clock)
    measured = _measure(entrants, workload, plan, missing, deadline, progress, clock)
    left = [entrant for entrant in entrants if entrant.name in measured.times]
    fresh = start_afresh(left, workload, measured.device, progress) if plan.memory else {}
    results = _results(left, measured, fresh, workload, plan)
    return BenchReport(
        schema_version=2,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundles=bundle_identities(left),
        machine=machine,
        settings=_settings(plan, workload, image, measured, target, sweep),
        results=results,
        limits=_limits(left, results, measured, plan, missing, progress),
        failed=missing,
        quality=_quality(results, measured, plan, workload),
        fits=() if sweep is None else fits_of(results),
    )


def _measure(
    entrants: Sequence[Entrant],
    workload: Workload,
    plan: BenchPlan,
    failed: dict[str, str],
    deadline: Deadline,
    progress: Progress,
    clock: Clock,
) -> _Measured:
    """Load everything, time it, and let go of it again. Adds to `failed`."""
    loaded = load_entrants(entrants, workload, deadline, progress, clock)
    failed.update(loaded.failed)
    contenders = loaded.contenders
    warmup = max(0, plan.warmup - bool(loaded.first))
    done, total = 0, len(contenders) * (warmup + plan.runs)
    progress("measuring", done, total)

    def advance() -> None:
        nonlocal done
        done += 1
        progress("measuring", done, total)

    broken = warm_up(contenders, warmup=warmup, seed=plan.seed, clock=clock, advance=advance)
    contenders = _without(contenders, broken, failed)
    cost = clock_cost_ns(clock)
    before = Snapshot.take()
    rounds = time_rounds(
        contenders,
        runs=plan.runs,
        seed=plan.seed,
        clock=clock,
        advance=advance,
        deadline=deadline,
        expected_ns=sum(times.request_ms * 1e6 for times in loaded.first.values()),
    )
    after = Snapshot.take()
    contenders = _without(contenders, rounds.failed, failed)
    times, only_first = rounds.times, not any(rounds.times.values())
    if only_first:
        times = {name: [loaded.first[name]] for name in contenders}
    progress("measuring", total, total)
    energy: dict[str, Energy] = {}
    if plan.energy:
        energy, missing = measure_energy(contenders, progress, clock)
        if missing is not None:
            failed["energy"] = missing
    parts = {name: one.read_image() for name, one in contenders.items()}
    first = next(iter(contenders.values())).engine
    return _Measured(
        times=times,
        only_first=only_first,
        tiles={name: part.tiles for name, part in parts.items()},
        visual_tokens={name: part.tokens for name, part in parts.items()},
        prompt_tokens={
            name: len(contenders[name].prompt_ids(part.tokens)) for name, part in parts.items()
        },
        device=first.device,
        reason=first.reason,
        before=before,
        after=after,
        clock_read_ns=cost,
        energy=energy,
    )


def _without(
    contenders: Mapping[str, Contender], broken: Mapping[str, str], failed: dict[str, str]
) -> dict[str, Contender]:
    """The contenders that still answer. Adds the others to `failed`."""
    failed.update(broken)
    left = {name: one for name, one in contenders.items() if name not in broken}
    if not left:
        raise nothing_left(dict(broken))
    return left


def _results(
    entrants: Sequence[Entrant],
    measured: _Measured,
    fresh: Mapping[str, Fresh],
    workload: Workload,
    plan: BenchPlan,
) -> tuple[VariantResult, ...]:
    found = Found(
        times=measured.times,
        visual_tokens=measured.visual_tokens,
        prompt_tokens=measured.prompt_tokens,
        fresh=fresh,
        energy=measured.energy,
        new_tokens=workload.new_tokens,
        clock_read_ns=measured.clock_read_ns,
        seed=plan.seed,
    )
    return tuple(variant_result(entrant, found) for entrant in entrants)


def _limits(
    entrants: Sequence[Entrant],
    results: Sequence[VariantResult],
    measured: _Measured,
    plan: BenchPlan,
    failed: dict[str, str],
    progress: Progress,
) -> Limits | None:
    """None where they were not asked for; where they cannot be measured, `failed` says why."""
    if not plan.limits:
        return None
    try:
        return beside_limits(
            entrants, results, measured.tiles, measured.device, plan.threads, progress
        )
    except Exception as error:  # what was timed stands
        failed["limits"] = message_of(error)
        return None


def _quality(
    results: Sequence[VariantResult],
    measured: _Measured,
    plan: BenchPlan,
    workload: Workload,
) -> Quality:
    steady, runs = results[-1], len(results[-1].request_ms.runs)  # the baseline, where there is one
    more = []
    if left_out := sorted(set(plan.new_tokens) - set(workload.new_tokens)):
        lengths = " and ".join(map(str, left_out))
        more.append(f"Answers of {lengths} tokens do not fit in the model's context.")
    if measured.only_first:
        more.append(
            "There was time for the first request of each variant alone, which is slower than "
            "later ones. For more, leave --quick out."
        )
    elif runs < plan.runs:
        more.append(f"There was time for {runs} of {plan.runs} rounds.")
    return quality(
        measured.before,
        measured.after,
        drift(steady.name, steady.request_ms.runs),
        clock_read_ns=measured.clock_read_ns,
        runs=runs,
        more=more,
    )


def _settings(
    plan: BenchPlan,
    workload: Workload,
    image: ImageIdentity,
    measured: _Measured,
    target: str,
    sweep: Sweep | None,
) -> Settings:
    return Settings(
        engine=target,
        device=measured.device,
        device_requested=plan.device,
        device_reason=measured.reason,
        threads=plan.threads,
        image=image,
        prompt=plan.prompt,
        new_tokens=workload.new_tokens,
        new_tokens_requested=tuple(sorted(set(plan.new_tokens))),
        runs=min(len(times) for times in measured.times.values()),
        warmup=0 if measured.only_first else plan.warmup,
        seed=plan.seed,
        fresh=plan.memory,
        energy=plan.energy,
        limits=plan.limits,
        sweep=sweep,
    )


__all__ = ["NO_BASELINE", "BenchJob", "Progress", "run_benchmark", "run_entrants"]
