"""Time a training step of stage 2 at full size, merged inside the encoder and behind it.

python samples/train_step_ratio.py --rounds 5 --json step.json

One model of random weights; the same merger stands after a quarter of the blocks, then behind the
last one, in turns in one process. A step is forward, backward, clipping and AdamW on all
parameters, at the rates of stage 2. On a CPU that imitates bf16 take --dtype fp32; fp32 needs
16 GB.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from laco_deploy.benchmark.memory import peak_resident_bytes
from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS, find_preset
from laco_deploy.training.parts import Part, parameter_groups
from laco_runtimes.bundle import write_atomic
from laco_runtimes.errors import LacoError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RATES: dict[Part, float] = {
    "tower": 2e-6,
    "merger": 1e-5,
    "projector": 1e-5,
    "language_model": 1e-5,
}
INSIDE, BEHIND, UNCOMPRESSED = "LaCo@1/4", "LaCo@1", "no merger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Where the merger stands, and what its steps took."""

    name: str
    after_block: int | None
    """k, counted from 1; None is no merger."""
    seconds: list[float] = field(default_factory=list)
    """Of whole steps, one per round."""
    optimizer_seconds: list[float] = field(default_factory=list)
    """The part of them after the backward pass, alike for all variants."""
    peaks: list[int] = field(default_factory=list)
    """Most bytes held during a step, weights and optimizer included."""


def make_model(vision: str, llm: str, dtype: torch.dtype) -> LacoForConditionalGeneration:
    """A model of random weights with LaCo after a quarter of the blocks."""
    tower = find_preset("vision encoder", vision, VISION_PRESETS).config()
    language = find_preset("language model", llm, LANGUAGE_PRESETS).config()
    config = LacoConfig(
        vision_config=tower.to_dict(),
        text_config=language.to_dict(),
        mergers=[{"after_block": max(tower.num_hidden_layers // 4, 1)}],
        image_token_id=language.vocab_size - 1,
    )
    config.dtype = dtype
    model = LacoForConditionalGeneration(config)
    nn.Module.to(model, dtype)
    return model


def place(model: LacoForConditionalGeneration, merger: nn.Module, after_block: int | None) -> None:
    """Let the merger stand behind another block; its weights and the optimizer's state stay."""
    encoder = model.model.vision_encoder
    encoder.mergers = nn.ModuleDict({} if after_block is None else {str(after_block): merger})
    model.config.mergers = [] if after_block is None else [{"after_block": after_block}]


def make_batch(model: LacoForConditionalGeneration, images: int, words: int) -> dict[str, Tensor]:
    """Random images, one to a sample, each followed by random text of which half is supervised."""
    config = model.config
    tokens, size = config.tokens_per_tile, config.image_size
    text = torch.randint(0, config.text.vocab_size - 1, (images, words))
    ids = torch.cat([torch.full((images, tokens), config.image_token_id), text], dim=1)
    labels = ids.clone()
    labels[:, : tokens + words // 2] = -100
    pixels = torch.randn(images, 3, size, size, dtype=model.dtype)
    batch = {"input_ids": ids, "labels": labels, "pixel_values": pixels}
    return {name: value.to(model.device) for name, value in batch.items()}


def step(
    model: LacoForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    variant: Variant,
) -> None:
    """One training step; its time and peak are added to the variant."""
    _reset_peak(model.device)
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    model(**batch, use_cache=False).loss.backward()
    _wait(model.device)
    middle = time.perf_counter()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    _wait(model.device)
    end = time.perf_counter()
    variant.seconds.append(end - start)
    variant.optimizer_seconds.append(end - middle)
    if (peak := _peak(model.device)) is not None:
        variant.peaks.append(peak)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM falls to what is held now: proc(5)


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes() if sys.platform == "linux" else None


def summary(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """A row for each variant; ratios to LaCo@1 are the middle one of the rounds."""
    behind = next(variant for variant in variants if variant.name == BEHIND)
    return [
        {
            **asdict(one),
            "ratio": statistics.median(
                own / other for own, other in zip(one.seconds, behind.seconds, strict=True)
            ),
            "median_s": statistics.median(one.seconds),
            "median_optimizer_s": statistics.median(one.optimizer_seconds),
            "peak_gb": max(one.peaks) / 1e9 if one.peaks else None,
        }
        for one in variants
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, and the speed-up in words."""
    lines = [
        "| variant | after block | step, s | clipping and AdamW, s | step / LaCo@1 | peak, GB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
        lines.append(
            f"| {row['name']} | {row['after_block'] or '-'} | {row['median_s']:.2f} "
            f"| {row['median_optimizer_s']:.2f} | {row['ratio']:.3f} | {peak} |"
        )
    inside = next(row for row in rows if row["name"] == INSIDE)
    ratio = inside["ratio"]
    return "\n".join(
        [*lines, "", f"A step of {INSIDE} takes {1 - ratio:.1%} less time than one of {BEHIND}."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vision", default="aimv2-large-448", help=", ".join(VISION_PRESETS))
    parser.add_argument("--llm", default="qwen2.5-0.5b", help=", ".join(LANGUAGE_PRESETS))
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=_count, default=5)
    parser.add_argument("--images", type=_count, default=1, help="samples in a step")
    parser.add_argument("--words", type=_count, default=128, help="text tokens of a sample")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--uncompressed", action="store_true", help="a third variant, no merger")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args(arguments)
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder '{options.json.parent}'")
    torch.manual_seed(0)
    try:
        model = make_model(options.vision, options.llm, DTYPES[options.dtype])
    except LacoError as error:
        parser.error(str(error))
    nn.Module.to(model, options.device).train()
    if not options.no_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(parameter_groups(model, RATES), weight_decay=0.0, fused=True)
    [(quarter, merger)] = model.model.vision_encoder.mergers.items()
    variants = [
        Variant(name=INSIDE, after_block=int(quarter)),
        Variant(name=BEHIND, after_block=model.config.vision.num_hidden_layers),
    ]
    if options.uncompressed:
        variants.append(Variant(name=UNCOMPRESSED, after_block=None))
    facts = {
        "vision": options.vision,
        "llm": options.llm,
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        "images": options.images,
        "words": options.words,
        "gradient_checkpointing": not options.no_checkpointing,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n", flush=True)
    for number in range(-1, options.rounds):  # the first is a warm-up: AdamW makes its state
        first = number % len(variants)
        for variant in (*variants[first:], *variants[:first]):
            place(model, merger, variant.after_block)
            batch = make_batch(model, options.images, options.words)
            step(model, optimizer, batch, variant)
            if number < 0:
                for figures in (variant.seconds, variant.optimizer_seconds, variant.peaks):
                    figures.clear()
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    rows = summary(variants)
    print(markdown(rows))
    if options.json:
        text = json.dumps({**facts, "rows": rows}, indent=2) + "\n"
        write_atomic(options.json, text.encode())
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
