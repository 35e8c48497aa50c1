"""ONNX Runtime runs the graphs of `onnx/` as they are."""

from __future__ import annotations

from laco_export.targets.base import CompileRequest


def compile_graph(request: CompileRequest) -> str:
    """Nothing to make: the engine loads the ONNX file."""
    return request.onnx


__all__ = ["compile_graph"]
