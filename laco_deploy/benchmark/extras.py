"""What is measured besides the rounds: energy, fresh processes, the machine's own limits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from laco_deploy.benchmark.energy import Meter, find_meters, running
from laco_deploy.benchmark.fresh import Fresh, fresh_start
from laco_deploy.benchmark.job import Entrant, Progress
from laco_deploy.benchmark.limits import RequestShape, variant_limits
from laco_deploy.benchmark.limits_schema import LimitedStage, Limits
from laco_deploy.benchmark.measure import message_of
from laco_deploy.benchmark.rates import measure_rates
from laco_deploy.benchmark.request import Clock, Contender, Workload, timed_request
from laco_deploy.benchmark.results import Energy
from laco_deploy.benchmark.schema import EnergyReading, VariantResult

ENERGY_SECONDS = 2.0
"""Shortest time of the requests between two readings; meters are brought up to date a few to a
thousand times a second."""
LEAST_REQUESTS = 2


def measure_energy(
    contenders: Mapping[str, Contender], progress: Progress, clock: Clock = time.perf_counter_ns
) -> tuple[dict[str, Energy], str | None]:
    """Energy of a request: each contender answers for a while, the meters read before and after.

    Returns:
        by name, and why nothing is known where nothing is.
    """
    device = next(iter(contenders.values())).engine.device
    found = find_meters(device)
    if found.missing is not None:
        return dict.fromkeys(contenders, Energy(note=found.missing)), found.missing
    energies = {}
    for number, (name, contender) in enumerate(contenders.items()):
        progress("energy", number, len(contenders))
        try:
            energies[name] = Energy(_readings(contender, found.meters, clock))
        except Exception as error:  # a meter that is gone, an engine that fails
            energies[name] = Energy(note=message_of(error))
    progress("energy", len(contenders), len(contenders))
    return energies, None


def _readings(
    contender: Contender, meters: Sequence[Meter], clock: Clock
) -> tuple[EnergyReading, ...]:
    timed_request(contender, clock)  # the one before was of another contender
    with running(meters):
        start, requests = clock(), 0
        while requests < LEAST_REQUESTS or clock() - start < ENERGY_SECONDS * 1e9:
            timed_request(contender, clock)
            requests += 1
            joules = [meter.joules() for meter in meters]  # often, as counters begin again
    return tuple(
        EnergyReading(
            meter=meter.name, covers=meter.covers, joules=found / requests, counted=meter.counted
        )
        for meter, found in zip(meters, joules, strict=True)
    )


def start_afresh(
    entrants: Sequence[Entrant], workload: Workload, device: str, progress: Progress
) -> dict[str, Fresh]:
    """Each entrant in a process of its own, one after the other."""
    found = {}
    for number, entrant in enumerate(entrants):
        progress("fresh processes", number, len(entrants))
        found[entrant.name] = fresh_start(
            entrant.bundle.root, entrant.variant.name, workload, device
        )
    progress("fresh processes", len(entrants), len(entrants))
    return found


def beside_limits(
    entrants: Sequence[Entrant],
    results: Sequence[VariantResult],
    tiles: Mapping[str, int],
    device: str,
    threads: int | None,
    progress: Progress,
) -> Limits:
    """The machine's rates, measured now, and the stages of every result beside them.

    Args:
        tiles: of the image, by name of an entrant.
    """
    progress("limits of the machine", 0, 1)
    rates = measure_rates(entrants[0].bundle.manifest.target, device, threads)
    by_name = {result.name: result for result in results}
    found = Limits(
        rates=rates,
        variants=tuple(
            variant_limits(
                entrant.bundle.root,
                entrant.bundle.manifest,
                entrant.variant,
                _shape(tiles[entrant.name], by_name[entrant.name]),
                rates,
                _medians(by_name[entrant.name]),
            ).model_copy(update={"name": entrant.name})
            for entrant in entrants
        ),
    )
    progress("limits of the machine", 1, 1)
    return found


def _shape(tiles: int, result: VariantResult) -> RequestShape:
    return RequestShape(
        tiles=tiles,
        prompt_tokens=result.prompt_tokens,
        new_tokens=result.answers[-1].new_tokens,
    )


def _medians(result: VariantResult) -> dict[LimitedStage, float]:
    found: dict[LimitedStage, float] = {
        "vision_encode": result.vision_encode_ms.median,
        "embed": result.embed_ms.median,
        "prefill": result.prefill_ms.median,
    }
    if result.tpot_ms is not None:
        found["tpot"] = result.tpot_ms.median
    return found


__all__ = ["beside_limits", "measure_energy", "start_afresh"]
