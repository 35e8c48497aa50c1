"""Every error laco-deploy raises for something a user can mend.

One root, `LacoError`, for `except` in an application; each leaf also inherits the builtin that a
stranger would catch. A message says what is wrong and then what to do about it.
"""

from __future__ import annotations


class LacoError(Exception):
    """Root of all errors raised on purpose. `exit_code` is what the commands return."""

    exit_code = 1


class ArgumentError(LacoError, ValueError):
    """An argument that cannot be honoured: unknown target, contradictory options, empty prompt."""

    exit_code = 2


class ImageError(LacoError, ValueError):
    """An image that is missing, damaged, of a kind that is not read, or of an absurd size."""


class ImageFileNotFoundError(ImageError, FileNotFoundError):
    """An image path that does not exist."""


class BundleError(LacoError, ValueError):
    """A bundle folder that is incomplete, damaged, of another format, or was tampered with."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """A bundle path that does not exist or holds no manifest."""


class SignatureError(BundleError):
    """A bundle that is not signed, or not by the key that is trusted, or not as it is now."""

    exit_code = 3


class CheckpointError(LacoError, ValueError):
    """A checkpoint folder without weights, with foreign weights, or of another architecture."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint path that does not exist or holds no `config.json`."""


class ConfigError(LacoError, ValueError):
    """A model configuration that cannot be built: k out of range, an unknown merger."""

    exit_code = 2


class DataError(LacoError, ValueError):
    """A training data set that cannot be read or must not be overwritten."""


class ContextLengthError(LacoError, ValueError):
    """A prompt that, with its images, does not fit in the model's context."""


class MissingPackageError(LacoError, ImportError):
    """A package that an optional part needs is not installed.

    Args:
        package: the import name that failed.
        extra: the extra of laco-deploy that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed. Install it with: pip install 'laco-deploy[{extra}]'"
        )


class EngineError(LacoError, RuntimeError):
    """An engine refused a graph, a device or an input, or failed while running."""


class OutOfMemoryError(EngineError, MemoryError):
    """An engine, or what it runs on, had no memory left for a model or a request.

    A pipeline whose request failed so can be used again at once.
    """


class ExportError(LacoError, RuntimeError):
    """A model could not be written as a graph or compiled for a target."""


class ParityError(ExportError):
    """The exported engine does not answer as the PyTorch model does; no bundle was written."""

    exit_code = 3


class DiskFullError(ExportError, OSError):
    """No room on the disk for a bundle; what stood in its place is as it was."""


class DoctorError(LacoError, RuntimeError):
    """Something on this machine is not as it must be; `laco doctor` has said what."""
