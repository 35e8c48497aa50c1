"""What the generation loop asks of an engine, and how an engine is described in the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.manifest import Manifest, Variant

Floats = NDArray[np.float32]


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
        """Forget all but the first `length` tokens of the cache."""


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
    """What a load function is given. The bundle was verified before."""

    root: Path
    manifest: Manifest
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


__all__ = ["EngineType", "Floats", "LanguageModel", "LoadRequest", "LoadedEngine", "VisionEncoder"]
