"""Which packages wrote a bundle."""

from __future__ import annotations

import importlib
from importlib import metadata

from laco_export.targets import TargetType


def package_versions(target: TargetType) -> dict[str, str]:
    """By import name: of what traces, writes, checks and compiles the graphs."""
    # From the modules: the distribution of a package may have another name (onnxruntime-gpu).
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", target.package)
    # Without the build that OpenVINO adds: 2026.4.1-22982-e213a147257-releases/2026/4.
    return {
        name: str(importlib.import_module(name).__version__).partition("-")[0] for name in packages
    }


def own_version() -> str:
    """Of laco-deploy itself."""
    try:
        return metadata.version("laco-deploy")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "0+source"


__all__ = ["own_version", "package_versions"]
