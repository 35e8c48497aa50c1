"""Which shapes plans are built for, as data: shared by the export, which proves that they build,
and the engine, which runs by them.
"""

from __future__ import annotations

from laco_runtimes.graphs import GraphSpec
from laco_runtimes.manifest import EngineFacts
from laco_runtimes.plan_builder import DimRange, Profile, make_profile

MAX_TILES = 8
"""Tiles per run of the encoder; more go in several runs."""
MAX_PIECE = 1024
"""Tokens per run of a prefill; a longer prompt goes in several runs."""
USUAL_PROMPT = 320
"""256 visual tokens and a question."""
MAX_CONTEXT = 2048
"""Capacity of the KV cache where nothing else is asked: it is attended to as a whole."""

PREFILL, STEP = 0, 1
"""Numbers of the two profiles of a decoder that has them apart."""


def context_size(facts: EngineFacts) -> int:
    """Tokens that the KV cache on the device holds."""
    return facts.cache_capacity or min(facts.language.max_positions, MAX_CONTEXT)


def piece_size(context: int) -> int:
    """Tokens per run of a prefill."""
    return min(MAX_PIECE, context)


def make_profiles(spec: GraphSpec, context: int, *, apart: bool = False) -> tuple[Profile, ...]:
    """The profiles of one graph.

    Args:
        spec: the graph.
        context: tokens that the KV cache holds.
        apart: kernels for prefill and for a single token are chosen apart, in two profiles. Faster
            where kernels are chosen while the plan is built, for nearly twice the memory in
            TensorRT-RTX, which stores the weights again.
    """
    piece = piece_size(context)
    usual = min(USUAL_PROMPT, piece)
    if spec.name != "decoder":
        return (make_profile(spec, _sizes(piece, (1, 1, MAX_TILES), (1, 1, piece), past=0)),)
    if not apart:
        sizes = [_sizes(context, (1, 1, 1), (1, 1, piece), past=context // 2)]
    else:
        sizes = [
            _sizes(context, (1, 1, 1), (1, usual, piece), past=0),
            _sizes(context, (1, 1, 1), (1, 1, 1), past=context // 2),
        ]
    return tuple(make_profile(spec, one) for one in sizes)


def _sizes(context: int, tiles: DimRange, sequence: DimRange, *, past: int) -> dict[str, DimRange]:
    """By dimension. `total` is `past` + `sequence` at each end, as the builder works them out."""
    cached = (0, past, context)
    low, usual, high = (old + new for old, new in zip(cached, sequence, strict=True))
    return {
        "tiles": tiles,
        "batch": (1, 1, 1),
        "sequence": sequence,
        "past": cached,
        "total": (low, usual, high),
    }


__all__ = [
    "MAX_CONTEXT",
    "MAX_PIECE",
    "MAX_TILES",
    "PREFILL",
    "STEP",
    "USUAL_PROMPT",
    "context_size",
    "make_profiles",
    "piece_size",
]
