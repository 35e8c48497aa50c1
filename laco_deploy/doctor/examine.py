"""All checks, in the order in which one builds on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from laco_deploy.doctor.apart import run_apart
from laco_deploy.doctor.bundle import check_folder
from laco_deploy.doctor.drivers import check_nvidia
from laco_deploy.doctor.finding import Finding
from laco_deploy.doctor.machine import check_machine, check_plan_folder
from laco_deploy.doctor.packages import check_packages
from laco_deploy.doctor.probes import PROBES
from laco_runtimes.plan_products import PRODUCTS

PROBE_TIMEOUT_S = 120.0
"""Imports included; torch with CUDA takes ten seconds from a slow disk."""
FOLDER_TIMEOUT_S = 1800.0
"""The first load of a large model builds TensorRT's plans, which takes minutes."""
DRIVER_TIMEOUT_S = 60.0

ENGINE_EXTRAS = {"onnxruntime-gpu", *(probe.extra for probe in PROBES.values())} - {"train"}


def examine(
    path: Path | None, device: str, on_stage: Callable[[str], None] = lambda stage: None
) -> Iterator[Finding]:
    """Look at machine, packages, drivers and engines, and at one bundle or checkpoint.

    Nothing here raises for what is found: a failure is a finding.

    Args:
        path: bundle or checkpoint; None for the machine alone.
        device: for `path`, as `Pipeline` takes it.
        on_stage: told what is looked at next.
    """
    on_stage("the machine")
    yield from check_machine()
    if any(find_spec(product.package) for product in PRODUCTS.values()):
        yield from check_plan_folder()
    on_stage("packages")
    yield from check_packages(ENGINE_EXTRAS)
    on_stage("drivers")
    yield from run_apart(
        check_nvidia,
        area="driver",
        name="nvidia",
        timeout_s=DRIVER_TIMEOUT_S,
        remedy="Restart the machine, or install NVIDIA's driver again.",
    )
    yield from check_engines(on_stage)
    if path is not None:
        on_stage(str(path))
        yield from run_apart(
            check_folder,
            str(path),
            device,
            area="bundle",
            name=str(path),
            timeout_s=FOLDER_TIMEOUT_S,
            remedy="Look at the failures above, use another device, or export the model again.",
        )


def check_engines(on_stage: Callable[[str], None] = lambda stage: None) -> Iterator[Finding]:
    """One tiny inference per engine that is installed; a failure where there is none at all."""
    installed = {name for name, probe in PROBES.items() if find_spec(probe.package)}
    for name, probe in PROBES.items():
        if name not in installed:
            yield Finding(
                area="engine",
                name=name,
                state="absent",
                said="not installed.",
                remedy=f"pip install 'laco-deploy[{probe.extra}]'",
            )
            continue
        on_stage(name)
        yield from run_apart(
            probe.ask,
            area="engine",
            name=name,
            timeout_s=PROBE_TIMEOUT_S,
            remedy=f"Install {_distribution(probe.package)} again, in a build for this processor.",
        )
    if not installed:
        yield Finding(
            area="engine",
            name="any engine",
            state="failed",
            said="no engine is installed, so nothing can run here.",
            remedy="pip install 'laco-deploy[onnxruntime]'",
        )


def _distribution(package: str) -> str:
    """What pip calls the package that is imported as `package`."""
    return metadata.packages_distributions().get(package, [package])[0]


__all__ = ["ENGINE_EXTRAS", "check_engines", "examine"]
