"""What is asked of an engine, by precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from laco_export.precision import Precisions

Limit = tuple[Literal["at least", "at most"], float]


@dataclass(frozen=True, slots=True)
class Row:
    """The limits of one family of precisions; a measure without one is only reported."""

    visual: Mapping[str, Limit]
    language: Mapping[str, Limit]
    tie_margin: float
    """Two best logits of the reference closer than this are a tie. From half precision on it is the
    noise of a logit that the row's own mean divergence allows, sqrt(2 KL): what may move that far
    may also swap them."""


def _noise(kl_mean: float) -> float:
    return math.sqrt(2 * kl_mean)


ROWS: dict[str, Row] = {
    "fp32": Row(
        visual={"cosine_min": ("at least", 0.99999)},
        language={
            "logits_max": ("at most", 1e-3),
            "kl_mean": ("at most", 1e-6),
            "kl_p999": ("at most", 1e-4),
            "top1": ("at least", 0.9995),
            "exact": ("at least", 1.0),
            "fdt": ("at least", 1.0),
        },
        tie_margin=1e-4,
    ),
    "half": Row(
        visual={"cosine_min": ("at least", 0.999)},
        language={
            "kl_mean": ("at most", 1e-3),
            "kl_p999": ("at most", 1e-2),
            "top1": ("at least", 0.995),
            "exact": ("at least", 0.95),
            "top5": ("at least", 1.0),
        },
        tie_margin=_noise(1e-3),
    ),
    "int8": Row(
        visual={"cosine_min": ("at least", 0.99)},
        language={
            "kl_mean": ("at most", 5e-3),
            "kl_p999": ("at most", 0.1),
            "top1": ("at least", 0.98),
            "fdt": ("at least", 0.8),
        },
        tie_margin=_noise(5e-3),
    ),
    "int4": Row(
        visual={"cosine_min": ("at least", 0.98)},
        language={
            "kl_mean": ("at most", 5e-2),
            "kl_p999": ("at most", 1.0),
            "top1": ("at least", 0.93),
        },
        tie_margin=_noise(5e-2),
    ),
}
"""Strictest first."""

ONNX_LIMITS: dict[str, Limit] = {
    **ROWS["fp32"].visual,
    **ROWS["fp32"].language,
    "logits_max": ("at most", 1e-4),
    "cache_max": ("at most", 1e-4),
}
"""Of the fp32 graphs on ONNX Runtime's CPU against PyTorch."""

PIXELS_MAX = 1e-6
"""Largest difference of a pixel value from the checkpoint's own processor."""

_ROW_OF = {
    "fp32": "fp32",
    "fp16": "half",
    "bf16": "half",
    "int8": "int8",
    "int8w": "int8",
    "fp8": "int8",
    "int4": "int4",
}


def visual_row(precisions: Precisions) -> Row:
    """What is asked of visual tokens."""
    return ROWS[_ROW_OF[precisions.vision]]


def language_row(precisions: Precisions) -> Row:
    """What is asked of logits and answers: they stand behind both halves, so the looser row."""
    order = list(ROWS)
    return ROWS[max((_ROW_OF[precisions.vision], _ROW_OF[precisions.llm]), key=order.index)]


__all__ = ["ONNX_LIMITS", "PIXELS_MAX", "ROWS", "Limit", "Row", "language_row", "visual_row"]
