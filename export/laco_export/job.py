"""What an export is given: torch modules, facts about them, and samples to check the result on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from laco_export.protocols import ImageEncoder, LanguageBody, Reference
from laco_runtimes.images import ImageSource, Preprocessing
from laco_runtimes.manifest import LanguageFacts, MergerFacts, VisionFacts
from laco_runtimes.prompt import PromptTemplate


@dataclass(frozen=True, slots=True)
class VariantSource:
    """One vision encoder to export."""

    name: str
    """`laco` for the model as trained."""
    encoder: ImageEncoder
    """An `nn.Module` in evaluation mode, float32."""
    mergers: tuple[MergerFacts, ...]
    merged_grid: tuple[int, int]
    """(H', W') of the visual tokens of one tile."""

    @property
    def tokens_per_tile(self) -> int:
        """N'."""
        return self.merged_grid[0] * self.merged_grid[1]


@dataclass(frozen=True, slots=True)
class ParitySample:
    """One question on which engine and PyTorch must agree."""

    name: str
    """Names the sample in an error."""
    image: ImageSource
    prompt: str


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the bundle's README says beyond the manifest; None where it is not known."""

    name: str | None = None
    """Of the model."""
    licence: str | None = None
    """Of the weights, as an SPDX identifier or a name."""
    base_models: tuple[str, ...] = ()
    """Models whose weights the training started from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """Everything `export_bundle` needs. Modules are float32, in evaluation mode, on the CPU."""

    target: str
    """Name in `laco_export.targets.TARGETS`."""
    precision: str = "fp32"
    """Of the weights of all graphs."""
    variants: tuple[VariantSource, ...]
    """The model as trained first, then the baselines."""
    vision: VisionFacts
    language: LanguageFacts
    body: LanguageBody
    head: nn.Linear
    rope_theta: float
    """Base of the rotary frequencies."""
    reference: Reference
    preprocessing: Preprocessing
    prompt: PromptTemplate
    files: Mapping[str, Path]
    """Files to copy, by their name in the bundle; `tokenizer.json` must be among them."""
    parity_samples: tuple[ParitySample, ...]
    """At least `laco_export.parity.MIN_IMAGES`."""
    card: CardFacts
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that made the modules."""
    device: str = "auto"
    """Where parity is measured, in the engine's own words."""


__all__ = ["CardFacts", "ExportJob", "ParitySample", "VariantSource"]
