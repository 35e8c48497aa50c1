"""The machine a benchmark ran on, as far as it can be told without extra packages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from laco_deploy.benchmark.schema import Machine


def describe_machine(engine_package: str) -> Machine:
    """Facts of this machine and process.

    Args:
        engine_package: import name of the engine in use.
    """
    return Machine(
        cpu_model=_cpu_model(),
        usable_cores=_usable_cores(),
        memory_bytes=_memory_bytes(),
        os=platform.platform(),
        architecture=platform.machine(),
        python=platform.python_version(),
        load_average_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        packages=_versions(("laco_deploy", "numpy", engine_package)),
    )


def _cpu_model() -> str:
    if sys.platform == "darwin":
        name = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    else:
        name = cpu_model_from(_text("/proc/cpuinfo")) or _text("/proc/device-tree/model")
    return name.strip() or platform.processor() or platform.machine() or "unknown"


def cpu_model_from(cpuinfo: str) -> str:
    """The processor's name in the text of `/proc/cpuinfo`; empty where Arm's kernel gives none."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() == "model name":
            return value.strip()
    return ""


def _text(path: str) -> str:
    try:
        # Device tree strings end with a NUL.
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions by distribution name: `onnxruntime` may come from `onnxruntime-gpu`."""
    known = _distributions()
    found: dict[str, str] = {}
    for package in packages:
        for name in known.get(package, (package.replace("_", "-"),)):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Import names to distributions; reading them takes half a second."""
    return packages_distributions()


__all__ = ["cpu_model_from", "describe_machine"]
