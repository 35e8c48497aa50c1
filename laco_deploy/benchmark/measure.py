"""Rounds of requests, one per variant, in an order that favours none."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from laco_deploy.benchmark.request import Clock, Contender, RequestTimes, timed_request

Advance = Callable[[], None]
"""Called after every request."""


class Deadline:
    """Time that a measurement may take, from now on.

    Args:
        seconds: None for as long as it takes.
    """

    def __init__(self, seconds: float | None, clock: Clock = time.perf_counter_ns) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + int(seconds * 1e9)

    @property
    def short(self) -> bool:
        """Whether there is an end at all."""
        return self._end is not None

    def allows(self, expected_ns: float) -> bool:
        """Whether something that takes about so long would end in time."""
        return self._end is None or self._clock() + expected_ns <= self._end


@dataclass(frozen=True, slots=True)
class Rounds:
    """What was timed."""

    times: dict[str, list[RequestTimes]]
    """By name, in the order of the rounds; of all that answered in every round."""
    failed: dict[str, str]
    """Of all others, why."""


def warm_up(
    contenders: Mapping[str, Contender],
    *,
    warmup: int,
    seed: int,
    clock: Clock = time.perf_counter_ns,
    advance: Advance = lambda: None,
) -> dict[str, str]:
    """Requests whose times are thrown away.

    They pay for lazy initialisation, memory and, on a GPU, the choice of kernels.

    Returns:
        why a contender failed, by its name.
    """
    return _requests(contenders, round_orders(list(contenders), warmup, seed), clock, advance)[1]


def time_rounds(
    contenders: Mapping[str, Contender],
    *,
    runs: int,
    seed: int,
    clock: Clock = time.perf_counter_ns,
    advance: Advance = lambda: None,
    deadline: Deadline | None = None,
    expected_ns: float = 0,
) -> Rounds:
    """Time one request of each contender in every round.

    A machine grows hot, clocks down and does other things in between; interleaved, that meets all
    variants alike, and the requests of one round can be compared in pairs. A contender that fails
    is left out from then on, and the others go on.

    Args:
        deadline: no round begins that would end after it.
        expected_ns: of the first round.
    """
    orders = round_orders(list(contenders), runs, seed)
    if deadline is not None:
        orders = _in_time(orders, deadline, expected_ns, clock)
    return Rounds(*_requests(contenders, orders, clock, advance))


def _requests(
    contenders: Mapping[str, Contender],
    orders: Iterator[list[str]],
    clock: Clock,
    advance: Advance,
) -> tuple[dict[str, list[RequestTimes]], dict[str, str]]:
    times: dict[str, list[RequestTimes]] = {name: [] for name in contenders}
    failed: dict[str, str] = {}
    for order in orders:
        for name in order:
            if name not in failed:
                try:
                    times[name].append(timed_request(contenders[name], clock))
                except Exception as error:  # whatever an engine raises, the others go on
                    failed[name] = message_of(error)
            advance()
    return {name: found for name, found in times.items() if name not in failed}, failed


def _in_time(
    orders: Iterator[list[str]], deadline: Deadline, longest: float, clock: Clock
) -> Iterator[list[str]]:
    for order in orders:
        if not deadline.allows(longest):
            return
        start = clock()
        yield order
        longest = max(longest, clock() - start)


def round_orders(names: Sequence[str], rounds: int, seed: int) -> Iterator[list[str]]:
    """An order of the names for each round.

    As many rounds as there are names form a block: a shuffled order and its rotations, so that each
    name takes each place once. The next block is shuffled anew, so that who runs before whom
    changes too.
    """
    shuffle = random.Random(seed)
    block: list[str] = []
    for number in range(rounds):
        shift = number % len(names)
        if shift == 0:
            block = shuffle.sample(names, len(names))
        yield block[shift:] + block[:shift]


def message_of(error: Exception) -> str:
    """An error in one line, never empty."""
    return " ".join(str(error).split()) or type(error).__name__


__all__ = [
    "Advance",
    "Deadline",
    "Rounds",
    "message_of",
    "round_orders",
    "time_rounds",
    "warm_up",
]
