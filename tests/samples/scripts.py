"""Programs of `samples/`, imported by their path as they are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`samples/<name>.py` as a module; known by its name until the test ends, for dataclasses."""
    spec = importlib.util.spec_from_file_location(name, SAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


__all__ = ["SAMPLES", "load_script"]
