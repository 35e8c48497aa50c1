"""Rounds of requests, one per variant, in an order that favours none."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence

from laco_deploy.benchmark.request import Clock, Contender, timed_request
from laco_runtimes.reply import Timings

Advance = Callable[[], None]
"""Called after every request."""


def measure(
    contenders: Sequence[Contender],
    *,
    runs: int,
    warmup: int,
    seed: int,
    clock: Clock = time.perf_counter_ns,
    advance: Advance = lambda: None,
) -> dict[str, list[Timings]]:
    """Warm every contender up, then time one request of each in every round.

    A machine grows hot, clocks down and does other things in between; interleaved, that meets all
    variants alike, and the requests of one round can be compared in pairs.

    Args:
        warmup: requests per contender whose times are thrown away. They pay for lazy
            initialisation, memory and, on a GPU, the choice of kernels.

    Returns:
        for every contender's name its `runs` timings, in the order of the rounds.
    """
    by_name = {contender.variant.name: contender for contender in contenders}
    for order in round_orders(list(by_name), warmup, seed):
        for name in order:
            timed_request(by_name[name], clock)
            advance()
    timings: dict[str, list[Timings]] = {name: [] for name in by_name}
    for order in round_orders(list(by_name), runs, seed):
        for name in order:
            timings[name].append(timed_request(by_name[name], clock))
            advance()
    return timings


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


__all__ = ["Advance", "measure", "round_orders"]
