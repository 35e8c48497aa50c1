"""How much an export compares."""

from __future__ import annotations

from dataclasses import dataclass

from laco_runtimes.errors import ArgumentError

MIN_IMAGES = 64
"""Fewer say too little: one image may hide an error in a corner of the patch grid."""

LARGE_WEIGHTS = 250_000_000
"""Models of more weights than this, 1 GB in float32, are compared by `LARGE`."""


@dataclass(frozen=True, slots=True)
class ParityPlan:
    """Which comparisons are made on how much. Visual tokens are compared on every image."""

    min_images: int = MIN_IMAGES
    """Fewer images, adversarial ones not counted, are refused; as many are taken by default."""
    adversarial: int = 16
    """Adversarial images on top of them, by default."""
    answered: int | None = None
    """Images behind which logits and an answer are compared; None for all."""
    tokens: int = 64
    """Of an answer."""
    pytorch: int = 16
    """Images on which the fp32 graphs are compared with PyTorch."""


LARGE = ParityPlan(min_images=16, adversarial=8, answered=8, tokens=32, pytorch=2)
"""A model of 0.8 billion weights takes seconds per image and per answer on a small machine: with
448 pixels 64 images are 20 TFLOP in the reference alone, and each has 256 visual tokens or more."""


def plan_for(weights: int) -> ParityPlan:
    """The plan for a model of that many weights."""
    return LARGE if weights > LARGE_WEIGHTS else ParityPlan()


def check_images(count: int, plan: ParityPlan) -> None:
    """Refuse too few images. None at all is fine: then nothing is compared, and the bundle says so.

    Raises:
        ArgumentError: fewer than `plan.min_images`.
    """
    if 0 < count < plan.min_images:
        raise ArgumentError(
            f"{count} images are too few to compare the engine with PyTorch. "
            f"Give at least {plan.min_images}, or none to leave the bundle unverified."
        )


__all__ = ["LARGE", "LARGE_WEIGHTS", "MIN_IMAGES", "ParityPlan", "check_images", "plan_for"]
