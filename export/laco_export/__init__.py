"""Torch modules to a bundle: graphs, ONNX, targets, parity. Knows no checkpoint, no configuration.

Raises:
    MissingPackageError: on import, where a package that every export needs is not installed.
"""

from importlib.util import find_spec

from laco_runtimes.errors import MissingPackageError

for _package in ("torch", "onnx", "onnxscript"):
    if find_spec(_package) is None:
        raise MissingPackageError(_package, "export")
