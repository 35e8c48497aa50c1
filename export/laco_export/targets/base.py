"""How a target is described in the table, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from laco_export.precision import PrecisionMenu
from laco_runtimes.graphs import GraphSpec
from laco_runtimes.images import Preprocessing
from laco_runtimes.manifest import EngineFacts, LanguageFacts, Variant, VisionFacts
from laco_runtimes.prompt import PromptTemplate


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What a user may ask of a target beyond precision; a target refuses what it does not know."""

    layouts: tuple[str, ...] = ()
    """Further layouts to write for other runtimes, names in `laco_export.layouts.LAYOUTS`."""
    context: int | None = None
    """Tokens that a KV cache of static size holds; None is the target's own choice."""
    flavour: str | None = None
    """Decoder flavour instead of the target's own, for older engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest:
    """One ONNX graph of an unsealed bundle, for a target to make its own file from.

    It can be pickled: a large graph is compiled in a process of its own.
    """

    root: Path
    """The bundle folder."""
    onnx: str
    """Path of the fp32 graph in it, in the flavour of the target."""
    spec: GraphSpec
    language: LanguageFacts
    vision: VisionFacts
    precision: str
    """Of this graph: a key of `VISION_PRECISIONS` or `LLM_PRECISIONS`."""
    calibration: Path | None = None
    """`.npy` file of pixel values, [images, 3, S, S] float32; for the vision encoder alone."""
    options: TargetOptions = TargetOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRequest:
    """A bundle whose graphs are all compiled, for a target to add what belongs to the whole."""

    root: Path
    facts: EngineFacts
    variants: tuple[Variant, ...]
    preprocessing: Preprocessing
    prompt: PromptTemplate
    options: TargetOptions = TargetOptions()


def nothing_to_finish(request: FinishRequest) -> None:
    """For a target whose graphs are all there is."""


def always_runs() -> str | None:
    """For a target whose engine runs wherever its package can be installed."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetType:
    """One row of the table of targets."""

    name: str
    """Also the name of the engine that runs it."""
    package: str
    """Import name of what compiles for it and runs it."""
    extra: str
    """Extra of laco-deploy that brings the package."""
    flavour: str = "stateful"
    """Decoder flavour that it is compiled from, a key of `laco_export.flavours.FLAVOURS`."""
    precisions: PrecisionMenu
    compile: Callable[[CompileRequest], str]
    """Make what the engine loads; the path in the bundle comes back."""
    finish: Callable[[FinishRequest], None] = nothing_to_finish
    """Write what belongs to the bundle as a whole."""
    check_runs: Callable[[], str | None] = always_runs
    """None, or why no engine of this target can run on this machine: then nothing can be compared
    here, and the bundle is sealed as unverified."""


__all__ = [
    "CompileRequest",
    "FinishRequest",
    "TargetOptions",
    "TargetType",
    "always_runs",
    "nothing_to_finish",
]
