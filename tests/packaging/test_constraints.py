"""constraints.txt and pyproject.toml agree."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def direct_dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(line) for group in groups for line in group]
    return [one for one in found if canonicalize_name(one.name) != project["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in parsed}


def test_every_direct_dependency_is_pinned_and_nothing_else() -> None:
    assert set(pins()) == {canonicalize_name(one.name) for one in direct_dependencies()}


def test_every_pin_is_within_the_declared_range() -> None:
    pinned = pins()
    outside = [str(one) for one in direct_dependencies() if pinned[one.name] not in one.specifier]
    assert outside == []
