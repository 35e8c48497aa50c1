"""Time one vision encoder with LaCo after different blocks, and hold it against theory.

python samples/encoder_ratio.py --preset aimv2-large-448 --dtype fp32 --json ratio.json

All variants share the weights of one encoder (random: time does not depend on them) and take turns
in one process, so that a machine that warms up or is disturbed slows all of them alike. With bf16
use a processor that computes in bf16 (AVX512-BF16, AMX, Arm with BF16); others imitate it, hundreds
of times slower.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

from laco_deploy.model import LacoConfig
from laco_deploy.model.cost import formula_operations
from laco_deploy.model.presets import VISION_PRESETS, find_preset
from laco_deploy.model.vision import LacoVisionEncoder
from laco_runtimes.bundle import write_atomic
from laco_runtimes.errors import LacoError

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

PARTS = {"1/12": 12, "1/6": 6, "1/4": 4, "1/2": 2, "1": 1}
"""Where the paper puts the merger: k = L / 12 and so on."""

REFERENCE, OURS, THEIRS = "LaCo@1", "no merger", "transformers"

# An encoder's configuration is part of a model's; this language model is never built.
TEXT = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "vocab_size": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run the encoder."""

    name: str
    after_block: int | None
    """k, counted from 1."""
    tokens: int
    """Visual tokens of a tile."""
    gflop: float
    """Of a tile, in theory."""
    run: nn.Module
    seconds: list[float] = field(default_factory=list)
    """One per round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is reported of a variant; ratios are to LaCo@1."""

    variant: str
    after_block: int | None
    tokens: int
    gflop: float
    theory: float
    min_ratio: float
    median_ratio: float
    min_ms: float
    median_ms: float
    seconds: list[float]


def make_variants(vision: PreTrainedConfig, dtype: torch.dtype) -> list[Variant]:
    """LaCo after each part of the blocks, no merger, and transformers' own forward pass."""
    blocks = vision.num_hidden_layers
    places = {max(blocks // part, 1): name for name, part in PARTS.items()}
    tower: nn.Module | None = None
    found = []
    for k, name in [*sorted((k, f"LaCo@{part}") for k, part in places.items()), (None, OURS)]:
        config = LacoConfig(
            vision_config=vision.to_dict(),
            text_config=TEXT,
            mergers=[] if k is None else [{"after_block": k}],
        )
        with torch.device("meta"):  # no memory for a tower that is replaced at once
            encoder = LacoVisionEncoder(config)
        tower = encoder.tower_type.build(config.vision).to(dtype).eval() if tower is None else tower
        encoder.tower = tower
        _start(encoder.mergers, dtype)
        found.append(
            Variant(
                name=name,
                after_block=k,
                tokens=config.tokens_per_tile,
                gflop=formula_operations(config).encoder / 1e9,
                run=encoder.eval(),
            )
        )
    return [*found, replace(found[-1], name=THEIRS, run=cast(nn.Module, tower), seconds=[])]


def _start(mergers: nn.Module, dtype: torch.dtype) -> None:
    """Give modules without memory random weights."""
    mergers.to_empty(device="cpu").to(dtype)
    for module in mergers.modules():
        if reset := getattr(module, "reset_parameters", None):
            reset()


@torch.inference_mode()
def measure(variants: Sequence[Variant], pixels: Tensor, rounds: int) -> None:
    """Run every variant once to warm up, then in turns; times are added to `seconds`."""
    for variant in variants:
        print(f"warm-up: {variant.name} {_seconds(variant, pixels):.3f} s", file=sys.stderr)
    for number in range(rounds):
        first = number % len(variants)  # so that none always follows the same one
        for variant in (*variants[first:], *variants[:first]):
            variant.seconds.append(_seconds(variant, pixels))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)


def _seconds(variant: Variant, pixels: Tensor) -> float:
    start = time.perf_counter()
    variant.run(pixels)
    return time.perf_counter() - start


def report(variants: Sequence[Variant]) -> list[Row]:
    """Fastest and middle time of each variant, and the middle one of the ratios to LaCo@1."""
    whole = next(variant for variant in variants if variant.name == REFERENCE)
    return [
        Row(
            variant=one.name,
            after_block=one.after_block,
            tokens=one.tokens,
            gflop=one.gflop,
            theory=one.gflop / whole.gflop,
            min_ratio=min(one.seconds) / min(whole.seconds),
            median_ratio=_paired(one.seconds, whole.seconds),
            min_ms=1e3 * min(one.seconds),
            median_ms=1e3 * statistics.median(one.seconds),
            seconds=one.seconds,
        )
        for one in variants
    ]


def _paired(seconds: Sequence[float], other: Sequence[float]) -> float:
    """Median of the ratios within a round, which a slow spell of the machine hardly moves."""
    return statistics.median(one / two for one, two in zip(seconds, other, strict=True))


def overhead(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Our walk over all blocks against transformers' own, without and with LaCo behind it."""
    named = {row.variant: row for row in rows}
    theirs = named[THEIRS]
    return {
        name: {
            "min_ratio": named[name].min_ms / theirs.min_ms,
            "median_ratio": _paired(named[name].seconds, theirs.seconds),
        }
        for name in (OURS, REFERENCE)
    }


def markdown(rows: Sequence[Row]) -> str:
    """The table, and the ratios to transformers under it."""
    lines = [
        "| variant | after block | tokens out | GFLOP | theory / LaCo@1 | min / LaCo@1 "
        "| median of rounds / LaCo@1 | min ms | median ms |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row.variant} | {row.after_block or '-'} | {row.tokens} | {row.gflop:.1f} "
            f"| {row.theory:.3f} | {row.min_ratio:.3f} | {row.median_ratio:.3f} "
            f"| {row.min_ms:.1f} | {row.median_ms:.1f} |"
            for row in rows
        ),
        "",
        *(
            f"{name} / {THEIRS}: {ratio['min_ratio']:.3f} (min), "
            f"{ratio['median_ratio']:.3f} (median of rounds)"
            for name, ratio in overhead(rows).items()
        ),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="aimv2-large-448", help=", ".join(VISION_PRESETS))
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--rounds", type=_count, default=5)
    parser.add_argument("--tile-count", type=_count, default=1, help="tiles in one pass")
    parser.add_argument("--threads", type=_count, help="by default torch's own choice")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args(arguments)
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder '{options.json.parent}'")
    try:
        vision = find_preset("vision encoder", options.preset, VISION_PRESETS).config()
    except LacoError as error:
        parser.error(str(error))
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = DTYPES[options.dtype]
    variants = make_variants(vision, dtype)
    theirs: Any = variants[-1].run
    pixels = torch.randn(options.tile_count, 3, vision.image_size, vision.image_size, dtype=dtype)
    facts = {
        "preset": options.preset,
        "dtype": options.dtype,
        "tiles": options.tile_count,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "attention": theirs.config._attn_implementation,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n", flush=True)
    measure(variants, pixels, options.rounds)
    rows = report(variants)
    print(markdown(rows))
    if options.json:
        figures = {**facts, "rows": [asdict(row) for row in rows], "overhead": overhead(rows)}
        write_atomic(options.json, (json.dumps(figures, indent=2) + "\n").encode())
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
