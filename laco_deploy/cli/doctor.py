"""`laco doctor`."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from laco_deploy.terminal import say
from laco_runtimes.errors import DoctorError

if TYPE_CHECKING:
    from laco_deploy.doctor.finding import Finding

SCHEMA_VERSION = 1

MARKS = {
    "ok": ("ok", "green"),
    "note": ("note", "yellow"),
    "absent": ("-", "dim"),
    "failed": ("FAILED", "bold red"),
}
"""How a state is shown, by its name: a word and its style."""


def doctor(engine: Path | None = None, /, *, device: str = "auto", json: bool = False) -> None:
    """Check packages, drivers, memory and engines, and say what to do about each failure.

    Every engine that is installed runs one tiny inference on each of its devices, in a process of
    its own. Ends with exit code 1 where anything failed.

    Examples:

    * `laco doctor` - this machine
    * `laco doctor engine/` - and whether this bundle answers on it

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote, or checkpoint folder, to be loaded and asked.
    device
        Where it runs then, in the engine's own words.
    json
        Print what was found as JSON instead.
    """
    from laco_deploy.doctor.examine import examine

    with Console(stderr=True).status("") as status:
        findings = list(examine(engine, device, lambda stage: status.update(f"looking at {stage}")))
    if json:
        print(json_module.dumps(_as_json(findings), indent=2))
    else:
        _show(findings)
    if failed := [finding.name for finding in findings if finding.state == "failed"]:
        raise DoctorError(
            f"{len(failed)} of {len(findings)} checks failed ({', '.join(failed)}). "
            "Do what is said beside each."
        )


def _as_json(findings: Sequence[Finding]) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "ok": all(finding.state != "failed" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _show(findings: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for area, group in groupby(findings, key=lambda finding: finding.area):
        say(area, style="bold")
        for finding in group:
            mark, style = MARKS[finding.state]
            say(f"  {mark:<6}  {finding.name:<{width}}  {finding.said}", style=style)
            if finding.remedy is not None:
                say(f"  {'':<6}  {'':<{width}}  -> {finding.remedy}")


__all__ = ["doctor"]
