"""What the generation loop asks of an engine, and how an engine is described in the table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.errors import EngineError, LacoError, OutOfMemoryError
from laco_runtimes.graphs import GraphSpec
from laco_runtimes.manifest import EngineFacts, Variant

Floats = NDArray[np.float32]

MAX_QUOTED = 500
"""Characters of an engine's own message that an error repeats."""

OUT_OF_MEMORY = re.compile(
    r"out of ((host|device|gpu) )?memory"  # CUDA, torch
    r"|out_?of_?((host|device)_?)?memory"  # CUDA_ERROR_..., CL_..., ZE_RESULT_..., TensorRT
    r"|out[ _]of[ _](gpu )?resources|exceed\w* max size of memory"  # OpenVINO's GPU plugin
    r"|mem_object_allocation_failure|exceed_allocatable_mem_size"
    r"|bad[ _]alloc"  # C++: std::bad_alloc, and bad allocation on Windows
    # OpenVINO's CPU, ONNX Runtime, numpy
    r"|(failed|unable|can't|cannot|could not) (to )?(be )?alloc(ated?)?\b"
    r"|is smaller than requested bytes"  # ONNX Runtime's arena at its limit
    r"|status_alloc_failed|cudaerrormemoryallocation"
    r"|insufficient memory|memory is insufficient",  # TensorRT's builder
    re.IGNORECASE,
)
"""How engines and what they run on say that there is no memory left."""


class VisionEncoder(Protocol):
    """Pixels to visual tokens."""

    def encode(self, pixel_values: Floats) -> Floats:
        """[tiles, 3, S, S] -> [tiles, N', D]."""


class LanguageModel(Protocol):
    """A decoder with its KV cache (batch 1). One dialogue at a time."""

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""

    def embed(self, ids: Sequence[int]) -> Floats:
        """Embeddings of token ids, [len(ids), D]."""

    def prefill(self, embeds: Floats) -> Floats:
        """Append [sequence, D] to the cache; logits of the last position, [V]."""

    def step(self, token: int) -> Floats:
        """Append one token; logits that follow it, [V]."""

    def score(self, tokens: Sequence[int]) -> Floats:
        """Append at least one token; the logits that follow each of them, [len(tokens), V].

        Row i is what `step` of token i would have returned. Only for engines whose
        `Capabilities.scores` is true.

        Raises:
            EngineError: the engine has logits of the last position alone.
        """

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; 0 starts afresh, also after an error.

        Raises:
            EngineError: fewer tokens are cached, or the engine cannot shorten its cache.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do with the model that it has loaded."""

    scores: bool
    """`LanguageModel.score`: logits of several positions from one pass."""
    rewinds: bool
    """`LanguageModel.rewind` to other lengths than 0."""
    batches_tiles: bool
    """Several tiles cost one pass of the vision encoder, not one each."""


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine ready to run one variant of a bundle."""

    vision: VisionEncoder
    language: LanguageModel
    device: str
    """The device in force, in the engine's own words."""
    reason: str
    """Why this engine and device."""
    capabilities: Capabilities = Capabilities(scores=False, rewinds=True, batches_tiles=True)
    """What it can do; every engine here at least this."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What a load function is given. A bundle was verified before."""

    root: Path
    manifest: EngineFacts
    variant: Variant
    device: str
    """`auto`, or a device in the engine's own words; an explicit one never falls back."""
    threads: int | None = None
    """CPU threads per inference; None leaves it to the engine."""
    brief: bool = False
    """The engine will be asked little: what makes it faster later is not worth its time now."""


@dataclass(frozen=True, slots=True)
class EngineType:
    """One row of the table of engines."""

    name: str
    package: str
    """Import name of the engine's package."""
    extra: str
    """Extra of laco-deploy that brings the package."""
    load: Callable[[LoadRequest], LoadedEngine]


@contextmanager
def engine_errors(doing: str, advice: str) -> Iterator[None]:
    """Turn whatever an engine's package raises inside into `EngineError`.

    Where the message is one of memory, into its kind `OutOfMemoryError`.

    Args:
        doing: what was under way, "loading decoder.onnx".
        advice: one sentence on what to do.
    """
    try:
        yield
    except LacoError as error:
        if type(error) is EngineError and OUT_OF_MEMORY.search(str(error)):
            raise OutOfMemoryError(str(error)) from error
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        # Lines that end in a colon are places in OpenVINO's C++ sources.
        said = " ".join(line for line in lines if line and not line.endswith(":"))
        said = said[:MAX_QUOTED].rstrip(".!") or type(error).__name__
        memory = isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))
        kind = OutOfMemoryError if memory else EngineError
        raise kind(f"{doing} failed: {said}. {advice}") from error


def check_names(spec: GraphSpec, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse a graph whose inputs and outputs are not the declared ones.

    Raises:
        EngineError: naming the first one too many or too few.
    """
    declared = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
    if wrong := sorted(declared.symmetric_difference({*inputs, *outputs})):
        raise EngineError(
            f"graph {spec.name} and this version of laco-deploy differ in {wrong[0]!r}. "
            "Export the model again."
        )


def check_rewind(length: int, cached: int) -> None:
    """Refuse to rewind a KV cache of `cached` tokens to a length it has not reached.

    Raises:
        EngineError: always then.
    """
    if not 0 <= length <= cached:
        raise EngineError(
            f"a KV cache of {cached} tokens cannot be rewound to {length}. Start a new dialogue."
        )


def check_room(total: int, longest: int) -> None:
    """Refuse a pass after which a KV cache would hold more tokens than the model has positions for.

    Raises:
        EngineError: always then.
    """
    if total > longest:
        raise EngineError(
            f"{total} tokens are more than the {longest} the model has positions for. "
            "Start a new dialogue."
        )


def cannot_score() -> EngineError:
    """What `LanguageModel.score` raises where `Capabilities.scores` is false."""
    return EngineError(
        "this engine gives logits of the last position alone. Leave prompt_lookup out, or use "
        "another engine."
    )


__all__ = [
    "Capabilities",
    "EngineType",
    "Floats",
    "LanguageModel",
    "LoadRequest",
    "LoadedEngine",
    "VisionEncoder",
    "cannot_score",
    "check_names",
    "check_rewind",
    "check_room",
    "engine_errors",
]
