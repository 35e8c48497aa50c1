"""The table of targets. A new target is one file beside this one and one line here."""

from __future__ import annotations

from laco_export.targets import onnxruntime, openvino
from laco_export.targets.base import CompileRequest, TargetType

TARGETS: dict[str, TargetType] = {
    "onnxruntime": TargetType(
        "onnxruntime", "onnxruntime", "onnxruntime", ("fp32",), onnxruntime.compile_graph
    ),
    "openvino": TargetType("openvino", "openvino", "openvino", ("fp32",), openvino.compile_graph),
}
"""Targets by name."""

__all__ = ["TARGETS", "CompileRequest", "TargetType"]
