"""Work of each stage by formula, from the facts of a bundle, beside what the machine can do.

Runs where bundles run: no PyTorch, no transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laco_deploy.benchmark.limits_schema import (
    LIMITED_STAGES,
    LimitedStage,
    MachineRates,
    StageLimits,
    VariantLimits,
)
from laco_deploy.operations import (
    PREFIX_TOKENS,
    Block,
    Decoder,
    merger_operations,
    merger_weights,
)
from laco_runtimes.errors import BundleError, LacoError
from laco_runtimes.manifest import BundleFacts, Variant

CONFIG_NAME = "config.json"
ODD_GRID = "replicate"
"""Of a merger in a `config.json` that does not tell (`model/merger_spec.py`)."""
"""File of a bundle with the checkpoint's configuration, which alone knows some widths."""

WEIGHT_BYTES: Mapping[str, float] = {
    "fp32": 4,
    "fp16": 2,
    "bf16": 2,
    "int8": 1,
    "int8w": 1,
    "fp8": 1,
    "int4": 0.5,
}
"""By precision; the scales of integers are left out."""

HEAD_BYTES: Mapping[str, float] = {**WEIGHT_BYTES, "int4": 1}
"""Of the head over the vocabulary, which stays in 8 bits."""

CACHE_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT_BYTES = 4
"""What goes in and out of the graphs."""
CHANNELS = 3

STAGE_MODULES: Mapping[LimitedStage, str] = {
    "vision_encode": "vision_encoder",
    "embed": "embed_tokens",
    "prefill": "decoder",
    "tpot": "decoder",
}
"""The graph that each stage runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """What one request brings."""

    tiles: int
    prompt_tokens: int
    """Visual tokens among them."""
    new_tokens: int
    """A token is reckoned with as much in the KV cache as on the average of such an answer."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage must do at the least."""

    operations: int
    moved_bytes: float


@dataclass(frozen=True, slots=True)
class _Config:
    """What the manifest does not tell."""

    vision_inner: int
    text_inner: int
    odd_grids: tuple[str, ...]
    """Of each merger, in order."""


def variant_limits(
    root: Path,
    facts: BundleFacts,
    variant: Variant,
    request: RequestShape,
    rates: MachineRates,
    measured_ms: Mapping[LimitedStage, float],
) -> VariantLimits:
    """All stages of one variant; a `note` says why where the work is not known.

    Args:
        root: folder of the bundle, for its `config.json`.
        facts: its manifest.
        variant: which encoder.
        request: what each request brought.
        rates: of the machine.
        measured_ms: medians; a stage may be missing.
    """
    try:
        work = stage_work(root, facts, variant, request)
    except LacoError as error:
        return VariantLimits(name=variant.name, stages=(), note=str(error))
    stages = tuple(
        _beside(
            stage,
            work[stage],
            facts.precision[STAGE_MODULES[stage]],
            rates,
            measured_ms.get(stage),
        )
        for stage in LIMITED_STAGES
    )
    return VariantLimits(name=variant.name, stages=stages, note=None)


def stage_work(
    root: Path, facts: BundleFacts, variant: Variant, request: RequestShape
) -> dict[LimitedStage, StageWork]:
    """Operations and least bytes of each stage.

    Raises:
        BundleError: no `config.json` that tells the widths inside feed-forward networks, or mergers
            that do not leave the variant's grid.
        ArgumentError: an encoder, a language model or a merger without a formula.
    """
    config = _read_config(root)
    language, prompt = facts.language, request.prompt_tokens
    decoder = Decoder(
        language.model_type,
        language.layers,
        language.hidden_size,
        config.text_inner,
        language.heads,
        language.kv_heads,
        language.head_dim,
    )
    head = language.hidden_size * language.vocab_size
    row = language.hidden_size * FLOAT_BYTES  # of one token between two graphs
    kept = 2 * language.layers * language.kv_heads * language.head_dim
    kept *= CACHE_BYTES[facts.cache_dtype]  # bytes of one token in the KV cache
    precision = facts.precision["decoder"]
    weights = language.layers * decoder.layer_weights * _bytes(WEIGHT_BYTES, precision)
    weights += head * _bytes(HEAD_BYTES, precision)
    table = language.hidden_size * _bytes(WEIGHT_BYTES, facts.precision["embed_tokens"])
    cached = prompt + (request.new_tokens - 1) // 2
    return {
        "vision_encode": _vision_work(facts, variant, config, request.tiles),
        "embed": StageWork(0, prompt * (table + row)),
        "prefill": StageWork(
            decoder.operations(prompt) + 2 * head, weights + prompt * (row + kept)
        ),
        "tpot": StageWork(
            decoder.operations(1, cached) + 2 * head, weights + row + (cached + 1) * kept
        ),
    }


def _vision_work(facts: BundleFacts, variant: Variant, config: _Config, tiles: int) -> StageWork:
    """Encoder, mergers and projector over all tiles; weights once."""
    vision, width, out = facts.vision, facts.vision.width, facts.language.hidden_size
    side = vision.image_size // vision.patch_size
    grid, operations = (side, side), 0
    if not variant.mergers and variant.merged_grid != grid:  # the image is made smaller
        grid = variant.merged_grid
        smaller = grid[0] * vision.patch_size
        rows = CHANNELS * (vision.image_size + smaller)
        operations += 2 * rows * vision.image_size * smaller
    block = Block(vision.model_type, width, config.vision_inner)
    block_weights, prefix = block.weights, PREFIX_TOKENS[vision.model_type]
    patch = CHANNELS * vision.patch_size**2 * width
    operations += 2 * grid[0] * grid[1] * patch
    weights = patch + vision.blocks * block_weights + width * out + out * out
    odd_grids = config.odd_grids
    if len(odd_grids) != len(variant.mergers):
        odd_grids = (ODD_GRID,) * len(variant.mergers)
    mergers = list(zip(variant.mergers, odd_grids, strict=True))
    for number in range(1, vision.blocks + 1):
        operations += block.operations(prefix + grid[0] * grid[1])
        while mergers and mergers[0][0].after_block == number:
            merger, odd_grid = mergers.pop(0)
            up = 0 if odd_grid == "crop" else merger.ratio - 1
            grid = (grid[0] + up) // merger.ratio, (grid[1] + up) // merger.ratio
            kind, ratio = merger.kind, merger.ratio
            operations += merger_operations(kind, width, ratio, grid[0] * grid[1])
            weights += merger_weights(kind, width, ratio)
    if mergers or grid != variant.merged_grid:
        raise BundleError(
            f"the mergers of variant {variant.name!r} do not leave the "
            f"{variant.merged_grid[0]}x{variant.merged_grid[1]} tokens that the bundle states, so "
            "that its work is not known. Export the model again."
        )
    merged = grid[0] * grid[1]
    operations += 2 * merged * (width * out + out * out)
    moved = CHANNELS * vision.image_size**2 + merged * out
    size = _bytes(WEIGHT_BYTES, facts.precision["vision_encoder"])
    return StageWork(tiles * operations, weights * size + tiles * moved * FLOAT_BYTES)


def _beside(
    stage: LimitedStage,
    work: StageWork,
    precision: str,
    rates: MachineRates,
    measured_ms: float | None,
) -> StageLimits:
    matrix = rates.matrix_gflops
    chosen = precision if precision in matrix else max(matrix, key=matrix.__getitem__, default=None)
    compute = None if chosen is None else work.operations / matrix[chosen] / 1e6
    bandwidth = rates.memory_gb_per_s
    memory = None if bandwidth is None else work.moved_bytes / bandwidth / 1e6
    limit = max((one for one in (compute, memory) if one is not None), default=None)
    return StageLimits(
        stage=stage,
        gflop=work.operations / 1e9,
        bytes=work.moved_bytes,
        rate_precision=chosen,
        compute_ms=compute,
        memory_ms=memory,
        bound=None if limit is None else "compute" if limit == compute else "memory",
        measured_ms=measured_ms,
        fraction_reached=limit / measured_ms if limit is not None and measured_ms else None,
    )


def _bytes(table: Mapping[str, float], precision: str) -> float:
    if precision not in table:
        raise BundleError(
            f"no size is known for weights in {precision!r}. Known: {', '.join(table)}."
        )
    return table[precision]


def _read_config(root: Path) -> _Config:
    try:
        values: Any = json.loads((root / CONFIG_NAME).read_text(encoding="utf-8"))
        vision, text = (
            values[part]["intermediate_size"] for part in ("vision_config", "text_config")
        )
        odd_grids = tuple(str(one.get("odd_grid", ODD_GRID)) for one in values.get("mergers") or ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        vision = text = None
        odd_grids = ()
    if not all(isinstance(one, int) and one > 0 for one in (vision, text)):
        raise BundleError(
            f"'{root.name}' has no {CONFIG_NAME} that tells how wide its feed-forward networks "
            "are, so that the work of its stages is not known. Export the model again."
        )
    return _Config(vision, text, odd_grids)


__all__ = ["RequestShape", "StageWork", "stage_work", "variant_limits"]
