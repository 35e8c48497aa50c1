"""How a target is described in the table, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from laco_export.choices import choose
from laco_export.precision import PrecisionMenu, Precisions
from laco_runtimes.errors import ArgumentError
from laco_runtimes.graphs import CacheDType, DecoderForm, GraphSpec
from laco_runtimes.images import Preprocessing
from laco_runtimes.manifest import (
    EngineFacts,
    FlavourName,
    ImageLayout,
    LanguageFacts,
    Variant,
    VisionFacts,
)
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
    """For a vision encoder whose activations are rounded: what `TargetType.calibration` says."""
    form: DecoderForm | None = None
    """Of the decoder as the engine shall take it: the fp32 graph has its flavour and capacity, but
    a cache of float32. None for the other graphs."""
    options: TargetOptions = TargetOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRequest:
    """A bundle whose graphs are all compiled, for a target to add what belongs to the whole."""

    root: Path
    facts: EngineFacts
    variants: tuple[Variant, ...]
    preprocessing: Preprocessing
    layout: ImageLayout = field(default_factory=ImageLayout)
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
    other_flavours: tuple[str, ...] = ()
    """Decoder flavours that may be asked for instead."""
    cache_dtypes: Mapping[str, CacheDType] = field(default_factory=dict)
    """Type of the KV cache by precision of the language model; float32 where none is named."""
    context: int | None = None
    """Tokens that a KV cache of one size holds by default, or the model's own limit if that is
    less; None where the cache grows, and no context can be asked for."""
    layouts: tuple[str, ...] = ()
    """Names of the further layouts that `finish` can write."""
    precisions: PrecisionMenu
    calibrated: tuple[str, ...] = ()
    """Vision precisions whose ranges of activations are found on images."""
    calibration: Literal["pixels", "ranges"] = "pixels"
    """What `compile` is given for them: a `.npy` file of pixel values, [images, 3, S, S] float32,
    or the `.npz` file that `laco_export.ranges.measure_ranges` wrote from them."""
    compile: Callable[[CompileRequest], str]
    """Make what the engine loads; the path in the bundle comes back."""
    finish: Callable[[FinishRequest], None] = nothing_to_finish
    """Write what belongs to the bundle as a whole."""
    check_runs: Callable[[], str | None] = always_runs
    """None, or why no engine of this target can run on this machine: then nothing can be compared
    here, and the bundle is sealed as unverified."""

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Vision precisions that need no images."""
        return tuple(name for name in self.precisions.vision if name not in self.calibrated)

    def check_images(self, options: TargetOptions, images: ImageLayout) -> None:
        """Refuse layouts for runtimes that would show the model other tokens than it learnt.

        Raises:
            ArgumentError: there is one, and the model cuts images or ends them with a vector.
        """
        if options.layouts and not images.one_tile:
            raise ArgumentError(
                f"the layout {options.layouts[0]} is for a runtime that shows an image as one "
                "tile, and the model cuts it into tiles or ends it with image_newline. "
                "Leave --layout out, or train with image_mode=square image_newline=false."
            )

    def check_options(self, options: TargetOptions) -> None:
        """Refuse what this target cannot do.

        Raises:
            ArgumentError: an unknown layout or flavour, or a context for a cache that grows.
        """
        for layout in options.layouts:
            choose(f"layout for {self.name}", layout, dict.fromkeys(self.layouts))
        if options.flavour is not None:
            allowed = (self.flavour, *self.other_flavours)
            choose(f"decoder flavour for {self.name}", options.flavour, dict.fromkeys(allowed))
        if options.context is None:
            return
        if self.context is None:
            raise ArgumentError(
                f"the KV cache of {self.name} grows as it is needed, so it takes no context. "
                "Leave --context out."
            )
        if options.context < 1:
            raise ArgumentError(f"a context of {options.context} tokens holds nothing. Give more.")

    def form(
        self, precisions: Precisions, language: LanguageFacts, options: TargetOptions
    ) -> DecoderForm:
        """How the decoder is to take its inputs and keep its cache.

        Raises:
            ArgumentError: a context longer than the model's own.
        """
        if options.context is not None and options.context > language.max_positions:
            raise ArgumentError(
                f"the model was made for {language.max_positions} tokens, so a context of "
                f"{options.context} is too long. Give at most {language.max_positions}."
            )
        wanted = options.context or self.context
        return DecoderForm(
            cast(FlavourName, options.flavour or self.flavour),
            cache_dtype=self.cache_dtypes.get(precisions.llm, "float32"),
            capacity=min(wanted, language.max_positions) if wanted else None,
        )


__all__ = [
    "CompileRequest",
    "FinishRequest",
    "TargetOptions",
    "TargetType",
    "always_runs",
    "nothing_to_finish",
]
