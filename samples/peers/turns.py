"""All systems in turns on the same prompts, and the table of what came out."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from laco_runtimes.errors import LacoError
from samples.peers.client import Times
from samples.peers.systems import System

TIMES: Mapping[str, str] = {"first_s": "first token", "step_s": "per token"}


class Asked(Protocol):
    """What `measure` wants of a worker."""

    def ask(self, prompt: Sequence[int], new_tokens: int) -> Times:
        """See `Worker`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request."""

    round: int
    prompt_tokens: int
    times: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One time of one system at one length of the prompt."""

    system: str
    weights: str
    time: str
    prompt_tokens: int
    rounds: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    against: str
    ratio: float | None
    """Median of the rounds' ratios, ours over it: below 1 where ours is faster. None where ours
    has failed."""


def measure(
    workers: Mapping[str, Asked],
    *,
    lengths: Sequence[int],
    new_tokens: int,
    rounds: int,
    vocabulary: int,
    failed: dict[str, str],
) -> dict[str, list[Sample]]:
    """Ask everybody the same, in turns; round 0 is not counted.

    Prompts are new in every round: some systems remember those that they have seen.

    Args:
        workers: by name of the system.
        lengths: of the prompts, in tokens.
        new_tokens: of an answer, at least 2.
        rounds: that are counted.
        vocabulary: prompts are of ids below it.
        failed: is given the message of each system that fails; it is asked no more.
    """
    random = np.random.default_rng(0)
    samples: dict[str, list[Sample]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        for length in lengths:
            prompt = random.integers(0, vocabulary, length).tolist()
            left = [name for name in workers if name not in failed]
            turn = number % len(left) if left else 0  # so that none always follows the same one
            for name in (*left[turn:], *left[:turn]):
                try:
                    times = workers[name].ask(prompt, new_tokens)
                except LacoError as error:
                    failed[name] = str(error)
                    continue
                if number:
                    samples[name].append(Sample(number, length, times))
        print(f"round {number} of {rounds}", file=sys.stderr)
    return samples


def rows(systems: Sequence[System], samples: Mapping[str, Sequence[Sample]]) -> list[Row]:
    """In the order of time, length, system; systems without a sample are left out."""
    lengths = sorted({one.prompt_tokens for found in samples.values() for one in found})
    table = []
    for field, what in TIMES.items():
        for length in lengths:
            for system in systems:
                mine = _by_round(samples.get(system.name, ()), length, field)
                if not mine:
                    continue
                ours = _by_round(samples.get(system.against, ()), length, field)
                both = [ours[one] / mine[one] for one in mine if one in ours]
                seconds = list(mine.values())
                low, high = np.percentile(seconds, [10, 90])
                table.append(
                    Row(
                        system=system.name,
                        weights=system.weights,
                        time=what,
                        prompt_tokens=length,
                        rounds=len(seconds),
                        median_ms=1e3 * statistics.median(seconds),
                        p10_ms=1e3 * float(low),
                        p90_ms=1e3 * float(high),
                        against=system.against,
                        ratio=statistics.median(both) if both else None,
                    )
                )
    return table


def _by_round(samples: Sequence[Sample], length: int, field: str) -> dict[int, float]:
    return {one.round: getattr(one.times, field) for one in samples if one.prompt_tokens == length}


def report(
    facts: Mapping[str, Any],
    table: Sequence[Row],
    versions: Mapping[str, Mapping[str, str]],
    failed: Mapping[str, str],
) -> str:
    """Markdown: settings and date, the table, versions, and what is missing and why."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in facts.items()),
        "",
        "| time | prompt | system | median ms | 10th to 90th percentile | ours / it | ours |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.time} | {row.prompt_tokens} | {row.system} | {row.median_ms:.1f} "
            f"| {row.p10_ms:.1f}–{row.p90_ms:.1f} "
            f"| {'–' if row.ratio is None else format(row.ratio, '.3f')} | {row.against} |"
            for row in table
        ),
        "",
        *(
            f"{home}: {', '.join(f'{name} {version}' for name, version in found.items())}"
            for home, found in versions.items()
        ),
        *(f"{name} is missing: {reason}" for name, reason in failed.items()),
    ]
    return "\n".join(lines) + "\n"


def figures(
    facts: Mapping[str, Any],
    table: Sequence[Row],
    versions: Mapping[str, Mapping[str, str]],
    failed: Mapping[str, str],
    samples: Mapping[str, Sequence[Sample]],
) -> dict[str, Any]:
    """All of it, with every sample, for `json.dumps`."""
    return {
        "settings": dict(facts),
        "versions": {home: dict(found) for home, found in versions.items()},
        "rows": [asdict(row) for row in table],
        "failed": dict(failed),
        "samples": {name: [asdict(one) for one in found] for name, found in samples.items()},
    }


__all__ = ["Asked", "Row", "Sample", "figures", "measure", "report", "rows"]
