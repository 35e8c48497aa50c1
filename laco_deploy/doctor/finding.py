"""One line of the report: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laco_runtimes.errors import LacoError

Area = Literal["machine", "package", "driver", "engine", "bundle"]
State = Literal["ok", "note", "absent", "failed"]
"""`note`: worth knowing, and nothing that stops an engine; `absent`: not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    area: Area
    name: str
    state: State
    said: str
    remedy: str | None = None
    """One line on what to do; every failure has one."""

    def __post_init__(self) -> None:
        if self.state == "failed" and not self.remedy:
            raise ValueError(f"{self.name} failed and has no remedy. Say what to do about it.")


def finding_of(area: Area, name: str, error: LacoError) -> Finding:
    """A failure, from an error: the last sentence of its message says what to do."""
    said, _, remedy = str(error).rpartition(". ")
    if not said:
        return Finding(
            area=area,
            name=name,
            state="failed",
            said=remedy,
            remedy="Report this as a defect, with what `laco doctor --json` prints.",
        )
    return Finding(area=area, name=name, state="failed", said=f"{said}.", remedy=remedy)


__all__ = ["Area", "Finding", "State", "finding_of"]
