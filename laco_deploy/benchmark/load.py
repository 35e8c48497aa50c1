"""Load all that takes part into this process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from laco_deploy.benchmark.job import Entrant, Progress
from laco_deploy.benchmark.measure import Deadline, message_of
from laco_deploy.benchmark.request import (
    Clock,
    Contender,
    RequestTimes,
    Workload,
    load_contender,
    timed_request,
)
from laco_runtimes.engines.base import LanguageModel
from laco_runtimes.errors import EngineError, LacoError


@dataclass(frozen=True, slots=True)
class Loaded:
    """What can be measured."""

    contenders: dict[str, Contender]
    """By name, in the order of the entrants; at least one."""
    failed: dict[str, str]
    """Of all others, why."""
    first: dict[str, RequestTimes]
    """The first request of each, where time is short; else empty."""


def load_entrants(
    entrants: Sequence[Entrant],
    workload: Workload,
    deadline: Deadline,
    progress: Progress,
    clock: Clock = time.perf_counter_ns,
) -> Loaded:
    """Load what can be loaded; one that fails is left out.

    Where time is short, each answers once right after it is loaded. From that time it is told
    whether there is enough for the next one; baselines come before the others, and are taken in
    even where there will be no time for a second request, as nothing compares without them.

    Raises:
        MissingPackageError, EngineError: nothing could be loaded, or not all on one device.
    """
    contenders: dict[str, Contender] = {}
    failed: dict[str, str] = {}
    errors: list[Exception] = []
    ordered = list(entrants)
    baselines = {entrant.baseline for entrant in entrants}
    if deadline.short:
        ordered[1:] = sorted(ordered[1:], key=lambda one: one.name not in baselines)
    costs: list[_Cost] = []
    first: dict[str, RequestTimes] = {}
    languages: dict[Path, LanguageModel] = {}
    for number, entrant in enumerate(ordered):
        progress("loading", number, len(ordered))
        rounds = 0 if entrant.name in baselines else 1
        if costs and not deadline.allows(_expected_ns(costs, entrant, rounds)):
            failed[entrant.name] = "left out, as there was no time for it"
            continue
        try:
            start = clock()
            found = load_contender(entrant.bundle, entrant.variant, workload)
            # Variants of a bundle have one decoder, and several copies of a large one do not fit.
            kept = languages.setdefault(entrant.bundle.root, found.engine.language)
            found = replace(found, engine=replace(found.engine, language=kept))
            ready = clock()
            if deadline.short:
                first[entrant.name] = timed_request(found, clock)
                costs.append(_Cost(entrant, ready - start, clock() - ready))
        except Exception as error:  # whatever an engine raises, the others go on
            failed[entrant.name] = message_of(error)
            errors.append(error)
        else:
            contenders[entrant.name] = found
    progress("loading", len(ordered), len(ordered))
    if not contenders:
        raise nothing_left(failed, errors)
    _check_one_device(contenders)
    names = [entrant.name for entrant in entrants if entrant.name in contenders]
    return Loaded({name: contenders[name] for name in names}, failed, first)


def nothing_left(failed: dict[str, str], errors: Sequence[Exception] = ()) -> Exception:
    """The error of a benchmark of which every variant failed: their own where it is a typed one."""
    if errors and isinstance(errors[0], LacoError):
        return errors[0]
    name, message = next(iter(failed.items()))
    return EngineError(
        f"no variant could be measured; {name!r}: {message}. Look further with `laco doctor`."
    )


@dataclass(frozen=True, slots=True)
class _Cost:
    entrant: Entrant
    load_ns: int
    request_ns: int


def _expected_ns(costs: Sequence[_Cost], entrant: Entrant, rounds: int) -> float:
    """Load, first request and so many rounds of what is loaded and of the next one.

    A request is reckoned to take as long as it has visual tokens, which is more than it will take.
    """
    last = costs[-1]
    slower = max(1.0, entrant.variant.tokens_per_tile / last.entrant.variant.tokens_per_tile)
    own = slower * last.request_ns
    return last.load_ns + own + rounds * (own + sum(cost.request_ns for cost in costs))


def _check_one_device(contenders: dict[str, Contender]) -> None:
    """`auto` decides for each variant by itself, and with less memory left maybe otherwise."""
    devices = {contender.engine.device for contender in contenders.values()}
    if len(devices) > 1:
        raise EngineError(
            f"the variants were loaded on different devices ({', '.join(sorted(devices))}) and "
            "cannot be compared. Name one with --device."
        )


__all__ = ["Loaded", "load_entrants", "nothing_left"]
