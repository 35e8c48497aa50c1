"""Images of several requests, encoded together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from laco_runtimes.encoding import ImageReader
from laco_runtimes.errors import LacoError
from laco_runtimes.turn import Encoded
from laco_runtimes.turnstile import Control, Turnstile
from laco_runtimes.visual import VisualPart, VisualSource


@dataclass(frozen=True, slots=True)
class _Read:
    parts: Sequence[VisualPart]
    preprocess_ms: float

    @property
    def tiles(self) -> int:
        return sum(part.tiles for part in self.parts)


def encode_ahead(
    reader: ImageReader, turnstile: Turnstile, requests: Sequence[Sequence[VisualSource]]
) -> Iterator[Encoded]:
    """The images of each request in turn, encoded in groups of as many as one pass takes.

    Other requests may run between two groups. Images are read group by group, so that a long list
    costs no more memory than one group.

    Args:
        reader: of the pipeline.
        turnstile: of the pipeline; the caller does not hold it.
        requests: images and videos of each.
    """
    group: list[_Read] = []
    for number, sources in enumerate(requests, start=1):
        start = time.perf_counter_ns()
        try:
            parts = reader.read(sources)
        except LacoError as error:
            error.add_note(f"It is image {number} of {len(requests)}.")
            raise
        one = _Read(parts, (time.perf_counter_ns() - start) / 1e6)
        if group and sum(read.tiles for read in group) + one.tiles > reader.max_tiles:
            yield from _encode(reader, turnstile, group)
            group = []
        group.append(one)
    if group:
        yield from _encode(reader, turnstile, group)


def _encode(reader: ImageReader, turnstile: Turnstile, group: Sequence[_Read]) -> Iterator[Encoded]:
    with turnstile.turn(Control()):
        start = time.perf_counter_ns()
        features = reader.encode([part for one in group for part in one.parts])
        spent_ms = (time.perf_counter_ns() - start) / 1e6
    tiles = sum(one.tiles for one in group)
    for one in group:
        yield Encoded(
            parts=one.parts,
            features=features,
            preprocess_ms=one.preprocess_ms,
            vision_encode_ms=spent_ms * one.tiles / tiles if tiles else 0.0,
        )


__all__ = ["encode_ahead"]
