"""ONNX Runtime on fp32 graphs that are run a few times and thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from laco_runtimes.engines.base import engine_errors
from laco_runtimes.engines.onnxruntime import NO_PREPACKING, RETRY, WEIGHTS_FOLDER

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def brief_session(graph: Path | bytes, weights: Path) -> InferenceSession:
    """Opened at once: weights stay in their file.

    Args:
        graph: a file, or the model itself.
        weights: folder of the file with its weights.

    Raises:
        EngineError: it cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry(NO_PREPACKING, "1")
    options.add_session_config_entry(WEIGHTS_FOLDER, str(weights))
    with engine_errors("loading an fp32 graph with ONNX Runtime", RETRY):
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


__all__ = ["brief_session"]
