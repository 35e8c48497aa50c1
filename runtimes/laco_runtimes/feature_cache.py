"""Visual tokens of images that were seen before, up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from laco_runtimes.engines.base import Floats
from laco_runtimes.errors import ArgumentError

FEATURE_CACHE_BYTES = 256 * 1024**2
"""Default budget: about 290 images of 256 visual tokens of width 896."""


class FeatureCache:
    """Visual tokens by content and variant; what was used longest ago goes first. Thread-safe.

    Args:
        max_bytes: budget; 0 keeps nothing.

    Raises:
        ArgumentError: a budget that is no count of bytes.
    """

    def __init__(self, max_bytes: int = FEATURE_CACHE_BYTES) -> None:
        if isinstance(max_bytes, bool) or max_bytes < 0:
            raise ArgumentError(
                f"a feature cache of {max_bytes!r} bytes cannot be. Give 0 to have none, or more."
            )
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[bytes, str], Floats] = OrderedDict()
        self._bytes = self._hits = self._misses = 0
        self._lock = threading.Lock()

    def get(self, digest: bytes, variant: str) -> Floats | None:
        """Visual tokens [tokens, D] of the image of that digest; None counts as a miss."""
        with self._lock:
            features = self._kept.get((digest, variant))
            if features is None:
                self._misses += 1
                return None
            self._hits += 1
            self._kept.move_to_end((digest, variant))
            return features

    def put(self, digest: bytes, variant: str, features: Floats) -> Floats:
        """Keep visual tokens, [tokens, D].

        Returns:
            a copy that cannot be written to, kept or not. It holds on to no larger array, as a
            slice of an encoder's output would.
        """
        copy = np.array(features, np.float32, order="C")
        copy.flags.writeable = False
        with self._lock:
            replaced = self._kept.pop((digest, variant), None)
            self._bytes -= 0 if replaced is None else replaced.nbytes
            if copy.nbytes <= self._max_bytes:
                self._kept[digest, variant] = copy
                self._bytes += copy.nbytes
            while self._bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes
        return copy

    def clear(self) -> None:
        """Drop everything; the counters go on."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    @property
    def hits(self) -> int:
        """Look-ups that spared an image its encoder."""
        return self._hits

    @property
    def misses(self) -> int:
        """Look-ups that found nothing."""
        return self._misses

    @property
    def bytes(self) -> int:
        """Bytes that are held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)


__all__ = ["FEATURE_CACHE_BYTES", "FeatureCache"]
