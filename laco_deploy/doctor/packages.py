"""Versions of installed packages, held against what laco-deploy asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata

from laco_deploy.doctor.finding import Finding, State

DISTRIBUTION = "laco-deploy"
DEVELOPMENT = "dev"
"""The extra of those who change laco-deploy: nothing runs by it."""

# All that pyproject.toml writes: a name, perhaps a least version, perhaps the extra it belongs to.
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(>=\s*(?P<floor>[0-9.]+))?[^;]*"
    r"(;.*?extra == ['\"](?P<extra>[^'\"]+))?"
)


@dataclass(slots=True)
class Wanted:
    """One distribution that laco-deploy names."""

    name: str
    floor: str = "0"
    """Least version."""
    extras: set[str] = field(default_factory=set)
    """Extras that bring it; none where it always comes."""


def check_packages(needed: Iterable[str]) -> Iterator[Finding]:
    """Every installed distribution that laco-deploy names, and those it cannot do without.

    Args:
        needed: extras of engines: a version too old is a failure there, and a note elsewhere.
    """
    try:
        own, lines = metadata.version(DISTRIBUTION), metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Finding(
            area="package",
            name=DISTRIBUTION,
            state="note",
            said="it runs from its sources, so that versions cannot be checked.",
            remedy="pip install laco-deploy",
        )
        return
    yield Finding(area="package", name=DISTRIBUTION, state="ok", said=own)
    for wanted in read_requirements(lines):
        if (finding := _check(wanted, set(needed))) is not None:
            yield finding


def read_requirements(lines: Iterable[str]) -> list[Wanted]:
    """Requirements as a distribution's metadata give them, one entry per distribution."""
    found: dict[str, Wanted] = {}
    for line in lines:
        if (match := REQUIREMENT.match(line)) is None or match["extra"] == DEVELOPMENT:
            continue
        wanted = found.setdefault(match["name"], Wanted(match["name"]))
        wanted.floor = max(wanted.floor, match["floor"] or "0", key=release)
        if match["extra"]:
            wanted.extras.add(match["extra"])
    return list(found.values())


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without zeros at the end: 2.13.0+cpu gives (2, 13)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _check(wanted: Wanted, needed: set[str]) -> Finding | None:
    state: State = "failed" if not wanted.extras or wanted.extras & needed else "note"
    remedy = f"pip install --upgrade '{wanted.name}>={wanted.floor}'"
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        if wanted.extras:
            return None
        return _package(wanted, "failed", "it is not installed.", remedy)
    if release(version) < release(wanted.floor):
        return _package(wanted, state, f"{version} is older than {wanted.floor}.", remedy)
    return _package(wanted, "ok", version)


def _package(wanted: Wanted, state: State, said: str, remedy: str | None = None) -> Finding:
    return Finding(area="package", name=wanted.name, state=state, said=said, remedy=remedy)


__all__ = ["Wanted", "check_packages", "read_requirements", "release"]
