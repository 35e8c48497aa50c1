"""How a target is described in the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from laco_runtimes.graphs import GraphSpec
from laco_runtimes.manifest import LanguageFacts


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """One ONNX graph of an unsealed bundle, for a target to make its own file from."""

    root: Path
    """The bundle folder."""
    onnx: str
    """Path of the graph in it."""
    spec: GraphSpec
    language: LanguageFacts
    precision: str


@dataclass(frozen=True, slots=True)
class TargetType:
    """One row of the table of targets."""

    name: str
    """Also the name of the engine that runs it."""
    package: str
    """Import name of what compiles for it and runs it."""
    extra: str
    """Extra of laco-deploy that brings the package."""
    precisions: tuple[str, ...]
    """Precisions that it can be compiled in, the default first."""
    compile: Callable[[CompileRequest], str]
    """Make what the engine loads; the path in the bundle comes back."""


__all__ = ["CompileRequest", "TargetType"]
