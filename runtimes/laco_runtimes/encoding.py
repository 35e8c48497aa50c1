"""From images to visual tokens: what was seen before from the cache, all else in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from laco_runtimes.engines.base import Floats, VisionEncoder
from laco_runtimes.errors import EngineError
from laco_runtimes.feature_cache import FeatureCache
from laco_runtimes.images import Preprocessing
from laco_runtimes.tiling import TokenLayout
from laco_runtimes.visual import VisualPart, VisualSource, arrange, pixel_values, read_visuals

MAX_TILES = 16
"""Images are encoded together up to so many tiles, which bounds the memory of a long list. A single
image may have more."""


class ImageReader:
    """The vision encoder of a pipeline, with what belongs in front of it and behind it.

    Args:
        encoder: of the engine.
        preprocessing: of the model.
        layout: of the model and the variant.
        newline: [D], `image_newline` of the model; None where it has none.
        cache: of visual tokens.
        variant: name under which the cache holds them.
        batches: whether tiles of several images are better encoded in one pass.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        *,
        preprocessing: Preprocessing,
        layout: TokenLayout,
        newline: Floats | None,
        cache: FeatureCache,
        variant: str,
        batches: bool,
    ) -> None:
        self._encoder = encoder
        self._preprocessing = preprocessing
        self._layout = layout
        self._newline = newline
        self._cache = cache
        self._variant = variant
        self.max_tiles = MAX_TILES if batches else 1
        """Of a pass over several images."""

    def read(self, sources: Sequence[VisualSource], *, alone: bool = True) -> list[VisualPart]:
        """Decode images and videos; see `read_visuals`."""
        return read_visuals(sources, self._preprocessing, self._layout, alone=alone)

    def known(self, digest: bytes) -> Floats | None:
        """Visual tokens of an image that the cache still holds."""
        return self._cache.get(digest, self._variant)

    def encode(self, parts: Sequence[VisualPart]) -> dict[bytes, Floats]:
        """Visual tokens [tokens, D] of each part, by its digest; each is looked up or encoded once.

        Raises:
            EngineError: the engine failed, or gave another number of visual tokens than declared.
        """
        distinct = {part.digest: part for part in parts}
        found = {digest: self.known(digest) for digest in distinct}
        missing = [part for digest, part in distinct.items() if found[digest] is None]
        for group in self.groups(missing):
            found |= self._encode_group(group)
        return {digest: features for digest, features in found.items() if features is not None}

    def groups(self, parts: Sequence[VisualPart]) -> Iterator[list[VisualPart]]:
        """Parts to encode together, in order."""
        group: list[VisualPart] = []
        for part in parts:
            if group and sum(one.tiles for one in group) + part.tiles > self.max_tiles:
                yield group
                group = []
            group.append(part)
        if group:
            yield group

    def _encode_group(self, group: Sequence[VisualPart]) -> dict[bytes, Floats]:
        squares = np.concatenate([part.squares for part in group])
        tiles = self._encoder.encode(pixel_values(squares, self._preprocessing))  # [T, N', D]
        if tiles.shape[:2] != (len(squares), self._layout.tokens_per_tile):
            raise EngineError(
                f"the vision encoder gave {list(tiles.shape[:2])} visual tokens for "
                f"{len(squares)} tiles of {self._layout.tokens_per_tile}. Export the model again."
            )
        found, start = {}, 0
        for part in group:
            own = tiles[start : start + part.tiles]
            start += part.tiles
            features = arrange(own, part, self._layout, self._newline)
            found[part.digest] = self._cache.put(part.digest, self._variant, features)
        return found


__all__ = ["MAX_TILES", "ImageReader"]
