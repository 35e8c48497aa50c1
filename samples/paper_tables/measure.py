"""Ask all cells in turns until the rounds are whole or the time is up."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Sequence

from samples.paper_tables.cells import Cell
from samples.paper_tables.record import Record, Sample, missing
from samples.paper_tables.system import Clock, System


def measure(
    record: Record,
    cells: Sequence[Cell],
    reference: Cell,
    make: Callable[[], System],
    *,
    rounds: int,
    deadline: float,
    clock: Clock = time.monotonic,
) -> bool:
    """Fill the record for the cells of one encoder.

    Args:
        record: of what is there already.
        cells: of one encoder.
        reference: one of them, LaCo@1.
        make: the system; called only if something is missing.
        rounds: samples of each cell.
        deadline: no request is begun after this reading of `clock`.
        clock: in seconds.

    Returns:
        Whether all rounds are whole.
    """
    plan = list(missing(record, cells, reference, rounds))
    total = sum(len(asked) for _, asked in plan)
    if not plan:
        return True
    if clock() >= deadline:
        return False
    system, sitting, done = make(), secrets.token_hex(4), 0
    for cell in cells:  # warm-up of this sitting, not counted
        if clock() >= deadline:
            return False
        system.ask(cell)
        print(f"{cell.encoder} warm-up, {cell.variant}", file=sys.stderr)
    start = clock()
    for number, asked in plan:
        for cell in asked:
            if clock() >= deadline:
                return False
            record.add(cell, Sample(number, sitting, system.ask(cell)))
            done += 1
            left = (clock() - start) / done * (total - done)
            print(
                f"{cell.encoder} round {number} of {rounds}, {cell.variant}: "
                f"{done} of {total}, {left:.0f} s left",
                file=sys.stderr,
            )
    return True


__all__ = ["measure"]
