"""What besides the times tells two reports apart, so that nobody reads a change wrongly."""

from __future__ import annotations

from collections.abc import Iterator

from laco_deploy.benchmark.schema import BenchReport


def differences(before: BenchReport, after: BenchReport) -> Iterator[str]:
    """Sentences, those that make the comparison doubtful among them."""
    facts = list(zip(_facts(before).items(), _facts(after).values(), strict=True))
    for (name, old), new in facts:
        if old != new:
            yield f"The {name} differs: {old} before, {new} after."
    names = {one.name for one in before.results}, {one.name for one in after.results}
    for which, only in (("first", names[0] - names[1]), ("second", names[1] - names[0])):
        if only:
            yield f"Only the {which} report has: {', '.join(sorted(only))}."
    old_packages, new_packages = before.machine.packages, after.machine.packages
    for package in sorted(old_packages.keys() | new_packages.keys()):
        old, new = old_packages.get(package, "none"), new_packages.get(package, "none")
        if old != new:
            yield f"{package}: {old} before, {new} after."
    for which, report in (("first", before), ("second", after)):
        for note in report.quality.notes:
            yield f"Of the {which} report: {note}"


def comparable(before: BenchReport, after: BenchReport) -> bool:
    """Whether they have any entry in common."""
    return any(before.result(result.name) is not None for result in after.results)


def _facts(report: BenchReport) -> dict[str, str]:
    machine, settings = report.machine, report.settings
    image = settings.image
    return {
        "processor": machine.cpu_model,
        "number of cores": str(machine.usable_cores),
        "system": machine.os,
        "engine": f"{settings.engine} on {settings.device}",
        "number of threads": "the engine's choice"
        if settings.threads is None
        else str(settings.threads),
        "image": f"{image.width}x{image.height}, SHA-256 {image.sha256[:12]}",
        "prompt": repr(settings.prompt),
        "longest answer": f"{settings.new_tokens[-1]} tokens",
        "bundle": ", ".join(sorted(one.manifest_sha256[:12] for one in report.bundles)),
    }


__all__ = ["comparable", "differences"]
