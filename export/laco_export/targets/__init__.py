"""The table of targets. A new target is one file beside this one and one line here."""

from __future__ import annotations

from laco_export.targets import onnxruntime, openvino, tensorrt
from laco_export.targets.base import CompileRequest, FinishRequest, TargetOptions, TargetType

TARGETS: dict[str, TargetType] = {
    target.name: target
    for target in (onnxruntime.TARGET, openvino.TARGET, tensorrt.TARGET, tensorrt.TARGET_RTX)
}
"""Targets by name."""

__all__ = ["TARGETS", "CompileRequest", "FinishRequest", "TargetOptions", "TargetType"]
