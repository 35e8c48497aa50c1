"""What an export is given: facts about a model, what loads it, and samples to check the result on.

A job holds no weights and can be pickled (where `load` can): a large model is loaded, compiled and
checked in processes of their own, which give its memory back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from laco_export.parity.plan import ParityPlan
from laco_export.protocols import Floats, ImageEncoder, LanguageBody, Reference
from laco_export.targets.base import TargetOptions
from laco_runtimes.images import ImageSource, Preprocessing
from laco_runtimes.manifest import ImageLayout, LanguageFacts, MergerFacts, VisionFacts
from laco_runtimes.prompt import PromptTemplate

if TYPE_CHECKING:  # a job is also handed to processes that have no torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Modules:
    """The model itself: torch modules in float32, in evaluation mode, on the CPU."""

    encoders: Mapping[str, ImageEncoder]
    """By the name of the variant; each is an `nn.Module`."""
    body: LanguageBody
    head: nn.Linear
    reference: Reference
    newline: Floats | None = None
    """`image_newline`, [D]; None where the model has none."""


@dataclass(frozen=True, slots=True)
class VariantSource:
    """One vision encoder to export."""

    name: str
    """`laco` for the model as trained."""
    mergers: tuple[MergerFacts, ...]
    merged_grid: tuple[int, int]
    """(H', W') of the visual tokens of one tile."""

    @property
    def tokens_per_tile(self) -> int:
        """N'."""
        return self.merged_grid[0] * self.merged_grid[1]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Numbers of weights, for a forecast of memory."""

    vision_encoder: int
    embed_tokens: int
    decoder: int
    """With its head, also where that is the matrix of the embeddings."""

    @property
    def total(self) -> int:
        """As the three graphs store them."""
        return self.vision_encoder + self.embed_tokens + self.decoder


@dataclass(frozen=True, slots=True)
class ParitySample:
    """One question on which engine and PyTorch must agree."""

    name: str
    """Names the sample in an error."""
    image: ImageSource
    prompt: str
    adversarial: bool = False
    """Blank, noise and the like: nothing the model was trained on."""


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
    """Everything `export_bundle` needs."""

    target: str
    """Name in `laco_export.targets.TARGETS`."""
    precision: str = "exact"
    """Of both halves of the model, or a name in `laco_export.precision.PRESETS`."""
    vision_precision: str | None = None
    """Of the vision encoder, instead."""
    llm_precision: str | None = None
    """Of the language model, instead."""
    options: TargetOptions = field(default_factory=TargetOptions)
    variants: tuple[VariantSource, ...]
    """The model as trained first, then the baselines."""
    vision: VisionFacts
    language: LanguageFacts
    size: ModelSize
    rope_theta: float
    """Base of the rotary frequencies."""
    load: Callable[[], Modules]
    """Loads the model. For work in other processes it must be picklable: a function of a module, or
    a `functools.partial` of one."""
    preprocessing: Preprocessing
    layout: ImageLayout = field(default_factory=ImageLayout)
    """How images become tiles, and their tokens visual tokens."""
    prompt: PromptTemplate
    files: Mapping[str, Path]
    """Files to copy, by their name in the bundle; `tokenizer.json` must be among them."""
    parity_samples: tuple[ParitySample, ...]
    """None at all seals the bundle as unverified."""
    plan: ParityPlan = field(default_factory=ParityPlan)
    """How much is compared."""
    calibration: tuple[ImageSource, ...] = ()
    """Images to calibrate activations on; those of `parity_samples` where there are none."""
    keep_source: bool = False
    """Leave the fp32 graphs in the bundle also where the engine does not load them."""
    card: CardFacts
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that made the modules."""
    device: str = "auto"
    """Where parity is measured, in the engine's own words."""
    apart: bool | None = None
    """Whether stages run in processes of their own; None: where the model is large."""


__all__ = [
    "CardFacts",
    "ExportJob",
    "ModelSize",
    "Modules",
    "ParitySample",
    "VariantSource",
]
