"""In which number format a device should train, and whether it is fast at it."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def resolve_precision(wanted: Literal["auto", "bf16", "fp32"]) -> tuple[Precision, str | None]:
    """The precision to train in, and a warning where this machine is slow at it."""
    fast = has_fast_bf16()
    if wanted == "auto":
        return ("bf16" if fast else "fp32"), None
    if wanted == "bf16" and not fast:
        return "bf16", (
            "This processor has no instructions for bf16 and emulates it, many times slower than "
            "float32. Add: --set precision=fp32"
        )
    return wanted, None


def has_fast_bf16() -> bool:
    """Whether the device that training would take computes in bf16 natively."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # AVX-512 or Arm's BF16


__all__ = ["Precision", "has_fast_bf16", "resolve_precision"]
