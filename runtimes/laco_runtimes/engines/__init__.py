"""The table of engines. A new engine is one file beside this one and one line here."""

from __future__ import annotations

import importlib

from laco_runtimes.engines import onnxruntime, openvino, tensorrt
from laco_runtimes.engines.base import EngineType, LoadedEngine, LoadRequest, engine_errors
from laco_runtimes.errors import BundleError, EngineError, MissingPackageError

RETRY = "Check the free memory, or export the model again."

ENGINES: dict[str, EngineType] = {
    "onnxruntime": EngineType("onnxruntime", "onnxruntime", "onnxruntime", onnxruntime.load),
    "openvino": EngineType("openvino", "openvino", "openvino", openvino.load),
    "tensorrt": EngineType("tensorrt", "tensorrt", "tensorrt", tensorrt.load),
    "tensorrt-rtx": EngineType("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", tensorrt.load),
}
"""Engines by the name of the export target."""


def load_engine(request: LoadRequest) -> LoadedEngine:
    """Load the graphs with the engine they were exported for.

    Raises:
        BundleError: the bundle's target is no engine of this version.
        MissingPackageError: the engine's package is not installed.
        EngineError: the package is broken, or the engine refused the device or a graph;
            `OutOfMemoryError` where there is no memory for it.
    """
    target = request.manifest.target
    if target not in ENGINES:
        raise BundleError(
            f"the bundle is for {target!r}, which this version of laco-deploy cannot run. "
            f"Export it for one of: {', '.join(sorted(ENGINES))}."
        )
    engine = ENGINES[target]
    try:
        importlib.import_module(engine.package)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == engine.package:
            raise MissingPackageError(engine.package, engine.extra) from None
        raise EngineError(
            f"{engine.package} is installed but does not start: {error}. Install it again."
        ) from error
    with engine_errors(f"loading the model with {target}", RETRY):
        return engine.load(request)


__all__ = ["ENGINES", "load_engine"]
