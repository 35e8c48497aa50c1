"""ONNX Runtime runs the graphs of `onnx/` as they are."""

from __future__ import annotations

from laco_export.precision import PrecisionMenu, Precisions
from laco_export.targets.base import CompileRequest, TargetType


def compile_graph(request: CompileRequest) -> str:
    """Nothing to make: the engine loads the ONNX file."""
    return request.onnx


EXACT = Precisions("fp32", "fp32")

TARGET = TargetType(
    name="onnxruntime",
    package="onnxruntime",
    extra="onnxruntime",
    precisions=PrecisionMenu(vision=("fp32",), llm=("fp32",), exact=EXACT, fast=(EXACT,)),
    compile=compile_graph,
)

__all__ = ["TARGET", "compile_graph"]
