"""VT and TPS as the paper prints them (arXiv 2507.02279, Tables 1, 4 and 8).

The paper states no hardware, batch, precision or answer length, so only ratios to its own LaCo@1
can be held against another machine.
"""

from __future__ import annotations

from dataclasses import dataclass

SETTINGS = ("single-image", "one-vision")
"""The two training settings; each has its own measurement of the same shapes."""

REFERENCE = "LaCo@1"


@dataclass(frozen=True, slots=True)
class Published:
    """One row of the paper; pairs are in the order of `SETTINGS`."""

    table: str
    """Number of the table, or of both where the same figures stand twice."""
    vision_ms: tuple[float, float]
    """VT, "Vision Encode Time"."""
    tokens_per_second: tuple[float, float]
    """TPS."""


PUBLISHED: dict[tuple[str, str], Published] = {
    ("aimv2", "LaCo@1/12"): Published("8", (23.5, 23.0), (28.2, 28.1)),
    ("aimv2", "LaCo@1/6"): Published("8", (26.2, 26.6), (27.7, 27.5)),
    ("aimv2", "LaCo@1/4"): Published("1, 4, 8", (29.3, 29.5), (27.4, 27.6)),
    ("aimv2", "LaCo@1/2"): Published("8", (39.0, 38.9), (26.3, 26.5)),
    ("aimv2", "LaCo@1"): Published("4, 8", (58.0, 57.6), (24.0, 24.0)),
    ("aimv2", "Pixel-Shuffle@1/4"): Published("1", (29.0, 29.4), (27.4, 27.5)),
    ("aimv2", "LDPv2@1/4"): Published("1", (30.1, 29.7), (27.4, 27.6)),
    ("aimv2", "TokenPacker@1/4"): Published("1", (33.6, 33.6), (26.8, 26.9)),
    ("siglip", "LaCo@1"): Published("4", (146.5, 146.3), (18.0, 18.2)),
    ("siglip", "LaCo@1/4"): Published("4", (57.3, 57.4), (24.0, 24.8)),
    ("internvit", "LaCo@1"): Published("4", (107.6, 107.7), (19.0, 19.0)),
    ("internvit", "LaCo@1/4"): Published("4", (43.4, 43.7), (25.5, 24.8)),
}
"""By encoder and variant."""


def ratios(encoder: str, variant: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """VT and TPS over those of LaCo@1 on the same encoder, per setting; None where not printed."""
    row = PUBLISHED.get((encoder, variant))
    if row is None:
        return None
    whole = PUBLISHED[encoder, REFERENCE]
    return (
        tuple(a / b for a, b in zip(row.vision_ms, whole.vision_ms, strict=True)),
        tuple(a / b for a, b in zip(row.tokens_per_second, whole.tokens_per_second, strict=True)),
    )


__all__ = ["PUBLISHED", "REFERENCE", "SETTINGS", "Published", "ratios"]
