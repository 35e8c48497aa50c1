"""Figures held against limits; the first stage that misses ends the export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from laco_export.parity.measures import MEASURES, Figures
from laco_export.parity.thresholds import Limit
from laco_runtimes.errors import ParityError
from laco_runtimes.manifest import Check

Stage = Literal["preprocessing", "onnx", "vision_encoder", "language"]

STAGES: dict[Stage, str] = {
    "preprocessing": "pixel values of the runtime and of the checkpoint's processor",
    "onnx": "the fp32 graphs and PyTorch",
    "vision_encoder": "the visual tokens of {target} and of the fp32 graphs",
    "language": "the answers of {target} and of the fp32 graphs",
}
"""What is compared in each stage, for people."""

_ADVICE: dict[Stage, str] = {
    "preprocessing": "Make the checkpoint's processor state the image size, mean and std it uses.",
    "onnx": "Try another version of torch or onnxruntime, or report this as a defect.",
    "vision_encoder": "Try a more faithful --vision-precision, other images with --calibration, or "
    "another version of the engine.",
    "language": "Try a more faithful --llm-precision, or another version of the engine.",
}


def judge(stage: Stage, figures: Figures, limits: Mapping[str, Limit]) -> tuple[Check, ...]:
    """Each figure with what is asked of it."""
    return tuple(
        Check(
            stage=stage,
            measure=name,
            # A manifest holds no NaN; whatever is no number is as wrong as can be.
            found=value if abs(value) < BOUND else _worst(limits.get(name)),
            wanted=limits[name][0] if name in limits else "report",
            limit=limits[name][1] if name in limits else None,
        )
        for name, value in figures.values.items()
    )


BOUND = 1e30


def _worst(limit: Limit | None) -> float:
    return -BOUND if limit is not None and limit[0] == "at least" else BOUND


def require(checks: Iterable[Check], target: str, worst: Mapping[str, str] | None = None) -> None:
    """Nothing, where every check is met.

    Args:
        checks: of one stage or several, in their order.
        target: named in the error.
        worst: by measure, the sample on which it was worst.

    Raises:
        ParityError: naming the first stage that misses, and all figures it misses by.
    """
    missed = [check for check in checks if not check.met]
    if not missed:
        return
    stage = missed[0].stage
    figures = "; ".join(
        _sentence(check, (worst or {}).get(check.measure))
        for check in missed
        if check.stage == stage
    )
    raise ParityError(
        f"{STAGES[stage].format(target=target)} differ: {figures}. "
        f"No bundle was written. {_ADVICE[stage]}"
    )


def _sentence(check: Check, where: str | None) -> str:
    asked = f"{check.wanted} {figure(check.limit or 0.0)} is asked for"
    value = "no number" if abs(check.found) >= BOUND else figure(check.found)
    return f"{MEASURES[check.measure]}, is {value}{f' ({where})' if where else ''}, and {asked}"


def figure(value: float) -> str:
    """A figure with as many places as it needs: close to 1 more than elsewhere."""
    if 0.9 <= value <= 1.1:
        return f"{value:.7f}".rstrip("0").rstrip(".")
    return f"{value:.3g}"


__all__ = ["STAGES", "Stage", "figure", "judge", "require"]
