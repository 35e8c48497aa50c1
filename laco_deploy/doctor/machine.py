"""The machine itself: processor, memory, and where plans are kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from laco_deploy.benchmark.machine import describe_machine
from laco_deploy.doctor.finding import Finding, finding_of
from laco_runtimes.errors import LacoError
from laco_runtimes.memory import available_bytes, readable

LITTLE_MEMORY = 500_000_000
"""Below this not even the smallest engine is loaded: each takes 0.1 to 0.4 GB by itself."""
LITTLE_DISK = 1_000_000_000
"""Plans of a model of 0.8 billion weights in fp16 are larger than this."""


def check_machine() -> Iterator[Finding]:
    """Processor and system, and memory that can still be had."""
    facts = describe_machine("numpy")
    yield _machine("system", f"{facts.os}, Python {facts.python}.")
    yield _machine("processor", f"{facts.cpu_model}, {facts.usable_cores} cores to use.")
    total = "" if facts.memory_bytes is None else f" of {readable(facts.memory_bytes)}"
    free = available_bytes()
    if free is None:
        yield _machine("memory", f"the system does not say what is free{total}.")
    elif free < LITTLE_MEMORY:
        yield Finding(
            area="machine",
            name="memory",
            state="failed",
            said=f"{readable(free)}{total} is free.",
            remedy="End other programs, or raise the limit of this container.",
        )
    else:
        yield _machine("memory", f"{readable(free)}{total} is free.")


def check_plan_folder() -> Iterator[Finding]:
    """The folder of TensorRT's plans: private, and with room in it."""
    from laco_runtimes.plans import CACHE_VARIABLE, PlanCache

    try:
        folder = PlanCache().folder
    except LacoError as error:
        yield finding_of("machine", "plans", error)
        return
    free = shutil.disk_usage(folder).free
    said = f"{folder} has {readable(free)} free."
    if free < LITTLE_DISK:
        remedy = f"Make room there, or set {CACHE_VARIABLE} to another folder of your own."
        yield Finding(area="machine", name="plans", state="note", said=said, remedy=remedy)
    else:
        yield _machine("plans", said)


def _machine(name: str, said: str) -> Finding:
    return Finding(area="machine", name=name, state="ok", said=said)


__all__ = ["check_machine", "check_plan_folder"]
