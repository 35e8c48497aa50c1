"""Broken samples of a run: skipped, counted, named in a file, and at some number too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from laco_deploy.training.run_files import append_lines, keep_until, read_lines
from laco_runtimes.errors import DataError

_NAMES_SHOWN = 20


class BrokenSample(Protocol):
    """What a data set gives in place of a sample that it cannot read."""

    @property
    def name(self) -> str:
        """Id of the sample."""

    @property
    def source(self) -> str:
        """Data file."""

    @property
    def reason(self) -> str:
        """What is wrong, as a sentence."""


class BrokenLog:
    """Counts the broken samples of all processes and names them in `broken.jsonl`.

    Args:
        path: the file; only the first process writes it.
        limit: samples to skip at most.
        is_writer: whether this is the first process.
    """

    def __init__(self, path: Path, limit: int, *, is_writer: bool) -> None:
        self._path, self._limit, self._is_writer = path, limit, is_writer
        self._names: list[str] = []

    @property
    def count(self) -> int:
        """Broken samples met so far."""
        return len(self._names)

    def go_on_from(self, step: int) -> None:
        """Forget what was met after optimizer step `step`: it will be met again."""
        kept = keep_until(self._path, step, write=self._is_writer)
        self._names = [_line(entry["name"], entry["reason"]) for entry in kept]

    def add(self, step: int, samples: Iterable[BrokenSample]) -> None:
        """Note the samples that step `step` met, in all processes.

        Raises:
            DataError: now there are more than `limit`; the message names them.
        """
        entries = [
            {"step": step, "name": s.name, "source": s.source, "reason": s.reason} for s in samples
        ]
        self._names += [_line(str(e["name"]), str(e["reason"])) for e in entries]
        if self._is_writer and entries:
            append_lines(self._path, entries)
        if self.count > self._limit:
            shown = "\n  ".join(self._names[:_NAMES_SHOWN])
            more = f"\n  ... all of them in {self._path}" if self.count > _NAMES_SHOWN else ""
            raise DataError(
                f"{self.count} samples are broken, more than the {self._limit} that max_broken "
                f"allows:\n  {shown}{more}\nMend the data (laco data check names all that is "
                "broken) or raise max_broken, and go on with --resume."
            )

    def summary(self) -> dict[str, int]:
        """Broken samples by data file."""
        found: dict[str, int] = {}
        for entry in read_lines(self._path):
            found[str(entry["source"])] = found.get(str(entry["source"]), 0) + 1
        return found


def _line(name: str, reason: str) -> str:
    return json.dumps(name, ensure_ascii=False).strip('"') + f": {reason}"


__all__ = ["BrokenLog", "BrokenSample"]
