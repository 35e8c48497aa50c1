"""Precisions of the two halves of a model, and what `--precision` means for a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from laco_export.choices import choose

Module = Literal["vision_encoder", "embed_tokens", "decoder"]

VISION_PRECISIONS: dict[str, str] = {
    "fp32": "32-bit floats",
    "fp16": "16-bit floats, normalisations in fp32",
    "bf16": "bfloat16, normalisations in fp32",
    "int8": "weights and activations of dense layers in 8 bits, by calibration images",
    "int8w": "weights in 8 bits, one scale per output channel; activations are floats",
    "fp8": "weights and activations of dense layers in float8 (E4M3), by calibration images",
}
"""Precisions of the vision encoder; which of them a target has is in its row."""

LLM_PRECISIONS: dict[str, str] = {
    "fp32": "32-bit floats",
    "fp16": "16-bit floats, normalisations in fp32",
    "bf16": "bfloat16, normalisations in fp32",
    "int8": "weights in 8 bits, one scale per output channel; activations are floats",
    "int4": "weights in 4 bits, one scale per group; the head and the embeddings in 8 bits",
    "fp8": "weights and activations of dense layers in float8 (E4M3)",
}
"""Precisions of the language model."""

PRESETS = ("exact", "fast")
"""`exact`: the most faithful that a target has. `fast`: its first candidate that parity allows."""

_OF_EMBEDDINGS = {"int4": "int8", "fp8": "fp16"}
"""A look-up gains nothing from these."""


@dataclass(frozen=True, slots=True)
class Precisions:
    """One choice for the two halves of a model."""

    vision: str
    """Key of `VISION_PRECISIONS`."""
    llm: str
    """Key of `LLM_PRECISIONS`."""

    def of(self, module: Module) -> str:
        """Precision of one graph."""
        if module == "vision_encoder":
            return self.vision
        if module == "embed_tokens":
            return _OF_EMBEDDINGS.get(self.llm, self.llm)
        return self.llm

    def __str__(self) -> str:
        return self.vision if self.vision == self.llm else f"{self.vision} + {self.llm}"


@dataclass(frozen=True, slots=True)
class PrecisionMenu:
    """What a target can be compiled in."""

    vision: tuple[str, ...]
    llm: tuple[str, ...]
    exact: Precisions
    fast: tuple[Precisions, ...]
    """Fastest first; the last one must always pass parity."""

    def candidates(
        self, precision: str, vision: str | None = None, llm: str | None = None
    ) -> tuple[Precisions, ...]:
        """What to try, in order; the first that parity allows is taken.

        Args:
            precision: of both halves, or a name in `PRESETS`.
            vision: of the vision encoder, instead.
            llm: of the language model, instead.

        Raises:
            ArgumentError: a precision that this target does not have for that half.
        """
        if precision in PRESETS:
            found: Sequence[Precisions] = (self.exact,) if precision == "exact" else self.fast
        else:
            found = (
                Precisions(
                    vision or _known("precision", precision, (*self.vision, *PRESETS)),
                    llm or _known("precision", precision, (*self.llm, *PRESETS)),
                ),
            )
        if vision is not None:
            _known("vision precision", vision, self.vision)
        if llm is not None:
            _known("llm precision", llm, self.llm)
        # A preset with one half given may name the same pair twice.
        return tuple(
            dict.fromkeys(Precisions(vision or one.vision, llm or one.llm) for one in found)
        )


def _known(what: str, name: str, names: tuple[str, ...]) -> str:
    choose(what, name, dict.fromkeys(names))
    return name


__all__ = [
    "LLM_PRECISIONS",
    "PRESETS",
    "VISION_PRECISIONS",
    "Module",
    "PrecisionMenu",
    "Precisions",
]
