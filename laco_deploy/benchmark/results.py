"""Timings to entries of `bench.json`."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laco_deploy.benchmark.fresh import NOT_ASKED, Fresh
from laco_deploy.benchmark.job import Entrant
from laco_deploy.benchmark.request import RequestTimes
from laco_deploy.benchmark.schema import Answer, BundleIdentity, EnergyReading, VariantResult
from laco_deploy.benchmark.statistics import distribution, paired_ratio, paired_speedup
from laco_runtimes.manifest import MANIFEST_NAME


@dataclass(frozen=True, slots=True)
class Energy:
    """Of one entrant."""

    readings: tuple[EnergyReading, ...] = ()
    note: str | None = None
    """Why there are none."""

    @property
    def joules(self) -> float | None:
        """Of all meters that count; None where there is no reading."""
        counted = [reading.joules for reading in self.readings if reading.counted]
        return sum(counted) if counted else None


NO_ENERGY = Energy(note="not asked for")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that was measured, by names of entrants."""

    times: Mapping[str, Sequence[RequestTimes]]
    visual_tokens: Mapping[str, int]
    prompt_tokens: Mapping[str, int]
    fresh: Mapping[str, Fresh]
    energy: Mapping[str, Energy]
    new_tokens: tuple[int, ...]
    clock_read_ns: float
    seed: int


def variant_result(entrant: Entrant, found: Found) -> VariantResult:
    """The entry of one entrant that was timed."""
    own = found.times[entrant.name]
    baseline = None if entrant.baseline is None else found.times.get(entrant.baseline)
    per_token = [times.tpot_ms for times in own if times.tpot_ms is not None]
    fresh = found.fresh.get(entrant.name, NOT_ASKED)
    energy = found.energy.get(entrant.name, NO_ENERGY)
    answers = tuple(
        _answer(length, place, own, baseline, found.seed)
        for place, length in enumerate(found.new_tokens)
    )
    mergers = entrant.variant.mergers
    return VariantResult(
        name=entrant.name,
        bundle=entrant.bundle_name,
        variant=entrant.variant.name,
        point=dict(entrant.point),
        latency_only=entrant.variant.latency_only,
        blocks=entrant.bundle.manifest.vision.blocks,
        after_block=mergers[0].after_block if mergers else None,
        visual_tokens=found.visual_tokens[entrant.name],
        prompt_tokens=found.prompt_tokens[entrant.name],
        preprocess_ms=distribution([times.preprocess_ms for times in own]),
        vision_encode_ms=distribution([times.vision_encode_ms for times in own]),
        embed_ms=distribution([times.embed_ms for times in own]),
        prefill_ms=distribution([times.prefill_ms for times in own]),
        ttft_ms=distribution([times.ttft_ms for times in own]),
        tpot_ms=distribution(per_token) if per_token else None,
        request_ms=answers[-1].request_ms,
        tokens_per_second=answers[-1].tokens_per_second,
        answers=answers,
        stage_sum_error=statistics.median(
            times.stage_sum_ms / times.request_ms - 1 for times in own
        ),
        overhead_share=min(
            1.0, statistics.median(_overhead(times, found.clock_read_ns) for times in own)
        ),
        load_ms=fresh.load_ms,
        cold_start_ms=fresh.cold_start_ms,
        fresh_note=fresh.note,
        peak_memory_bytes=fresh.peak_bytes,
        peak_device_bytes=fresh.device_bytes,
        peak_device_note=fresh.device_note,
        energy_joules=energy.joules,
        energy=energy.readings,
        energy_note=energy.note,
        baseline=None if baseline is None else entrant.baseline,
        speedup_over_uncompressed=(
            None if baseline is None else paired_speedup(baseline, own, found.seed)
        ),
    )


def bundle_identities(entrants: Sequence[Entrant]) -> tuple[BundleIdentity, ...]:
    """Each bundle once, in order."""
    bundles = {entrant.bundle_name: entrant.bundle for entrant in entrants}
    return tuple(
        BundleIdentity(
            name=name,
            manifest_sha256=hashlib.sha256((bundle.root / MANIFEST_NAME).read_bytes()).hexdigest(),
            target=bundle.manifest.target,
            precision=bundle.manifest.precision,
        )
        for name, bundle in bundles.items()
    )


def _answer(
    length: int,
    place: int,
    own: Sequence[RequestTimes],
    baseline: Sequence[RequestTimes] | None,
    seed: int,
) -> Answer:
    mine = [times.answers_ms[place] for times in own]
    return Answer(
        new_tokens=length,
        request_ms=distribution(mine),
        tokens_per_second=distribution([1e3 * length / one for one in mine]),
        speedup_over_uncompressed=(
            None
            if baseline is None
            else paired_ratio([times.answers_ms[place] for times in baseline], mine, seed)
        ),
    )


def _overhead(times: RequestTimes, clock_read_ns: float) -> float:
    between = max(0.0, times.request_ms - times.stage_sum_ms)
    return (between + times.readings * clock_read_ns / 1e6) / times.request_ms


__all__ = ["NO_ENERGY", "Energy", "Found", "bundle_identities", "variant_result"]
