"""What was measured, one file per cell, written after every single request.

A round asks every cell of an encoder once. A run that was stopped goes on with the cell after the
last one that is on the disk. Ratios pair only requests of one round *and one sitting*: a round that
was stopped half-way measures LaCo@1 again when it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laco_runtimes.bundle import write_atomic
from laco_runtimes.errors import ArgumentError, DataError
from samples.paper_tables.cells import Cell
from samples.paper_tables.system import Request

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request of one cell."""

    round: int
    """Counted from 1; 0 is the warm-up of a sitting and never stored."""
    sitting: str
    """Of the process that measured it."""
    request: Request


class Record:
    """The samples of all cells in a folder.

    Args:
        folder: made if it is not there.
        settings: what must be alike for samples to be of one table.

    Raises:
        ArgumentError: the folder holds samples of other settings.
        DataError: a file in it cannot be read.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        path = folder / SETTINGS_FILE
        if not path.exists():
            write_atomic(path, (json.dumps(settings, indent=2) + "\n").encode())
            return
        before = _read(path)
        if not isinstance(before, dict):
            raise _damaged(path)
        other = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
        if other:
            said = ", ".join(
                f"{key} {before.get(key)!r}, now {settings.get(key)!r}" for key in other
            )
            raise ArgumentError(
                f"'{folder}' was measured with other settings ({said}). "
                "Name another folder, or give the same options."
            )

    def samples(self, cell: Cell) -> list[Sample]:
        """All of a cell, in the order in which they were taken.

        Raises:
            DataError: its file cannot be read.
        """
        path = self._path(cell)
        if not path.exists():
            return []
        try:
            return [
                Sample(one["round"], one["sitting"], Request(**one["request"]))
                for one in _read(path)
            ]
        except (KeyError, TypeError) as error:
            raise _damaged(path) from error

    def add(self, cell: Cell, sample: Sample) -> None:
        """Append, on the disk when this returns."""
        rows = [asdict(one) for one in (*self.samples(cell), sample)]
        write_atomic(self._path(cell), (json.dumps(rows, indent=1) + "\n").encode())

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.name}.json"


def missing(
    record: Record, cells: Sequence[Cell], reference: Cell, rounds: int
) -> Iterator[tuple[int, list[Cell]]]:
    """Rounds that are not whole, and what to ask in each: its open cells, and the reference."""
    for number in range(1, rounds + 1):
        open_cells = [
            cell
            for cell in cells
            if number not in {sample.round for sample in record.samples(cell)}
        ]
        if open_cells and reference not in open_cells:
            open_cells.insert(0, reference)
        if open_cells:
            turn = number % len(open_cells)  # so that none always follows the same one
            yield number, [*open_cells[turn:], *open_cells[:turn]]


def pairs(mine: Sequence[Sample], reference: Sequence[Sample]) -> list[tuple[Request, Request]]:
    """Requests of a cell with those of the reference in the same round and sitting."""
    others = {(one.round, one.sitting): one.request for one in reference}
    return [
        (one.request, others[one.round, one.sitting])
        for one in mine
        if (one.round, one.sitting) in others
    ]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> DataError:
    return DataError(f"'{path}' is not what was written here. Remove it; it is measured again.")


__all__ = ["SETTINGS_FILE", "Record", "Sample", "missing", "pairs"]
