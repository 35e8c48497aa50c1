"""What the generation loop asks of an engine, and how an engine is described in the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.errors import EngineError, LacoError
from laco_runtimes.graphs import GraphSpec
from laco_runtimes.manifest import EngineFacts, Variant

Floats = NDArray[np.float32]

MAX_QUOTED = 500
"""Characters of an engine's own message that an error repeats."""


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

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens; 0 starts afresh, also after an error.

        Raises:
            EngineError: fewer tokens are cached, or the engine cannot shorten its cache.
        """


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine ready to run one variant of a bundle."""

    vision: VisionEncoder
    language: LanguageModel
    device: str
    """The device in force, in the engine's own words."""
    reason: str
    """Why this engine and device."""


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

    Args:
        doing: what was under way, "loading decoder.onnx".
        advice: one sentence on what to do.
    """
    try:
        yield
    except LacoError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        # Lines that end in a colon are places in OpenVINO's C++ sources.
        said = " ".join(line for line in lines if line and not line.endswith(":"))
        said = said[:MAX_QUOTED].rstrip(".!") or type(error).__name__
        raise EngineError(f"{doing} failed: {said}. {advice}") from error


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


__all__ = [
    "EngineType",
    "Floats",
    "LanguageModel",
    "LoadRequest",
    "LoadedEngine",
    "VisionEncoder",
    "check_names",
    "check_rewind",
    "engine_errors",
]
