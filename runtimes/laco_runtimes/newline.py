"""The file of `image_newline`, the vector that ends rows of visual tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.errors import BundleError
from laco_runtimes.manifest import NEWLINE_NAME, BundleFacts

Floats = NDArray[np.float32]


def read_newline(root: Path, facts: BundleFacts) -> Floats | None:
    """The vector of a bundle, [D]; None where its model has none.

    Args:
        root: the bundle, verified.
        facts: its manifest.

    Raises:
        BundleError: the file is not such a vector.
    """
    return read_vector(root, facts.language.hidden_size) if facts.layout.newline else None


def read_vector(root: Path, width: int) -> Floats:
    """The vector in a folder, [D]; `width` is D.

    Raises:
        BundleError: the file is not such a vector.
    """
    path = root / NEWLINE_NAME
    try:
        # Mapped, so that a header that lies about its shape costs no memory.
        vector = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"'{path}' cannot be read. Export the model again.") from error
    if not isinstance(vector, np.memmap) or vector.dtype != np.float32 or vector.shape != (width,):
        raise BundleError(
            f"'{path}' is no vector of {width} float32 numbers. Export the model again."
        )
    if not np.isfinite(vector).all():
        raise BundleError(f"'{path}' holds what is no number. Export the model again.")
    return np.array(vector)


def write_newline(root: Path, vector: Floats) -> None:
    """Put the vector, [D], into a bundle that is being written."""
    np.save(root / NEWLINE_NAME, np.ascontiguousarray(vector, np.float32), allow_pickle=False)


__all__ = ["read_newline", "read_vector", "write_newline"]
