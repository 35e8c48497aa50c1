"""Time one vision encoder on OpenVINO with LaCo early and late, in fp32 and in int8.

python samples/openvino_encoder_ratio.py --work encoder/ --preset aimv2-large-448 --json ratio.json

Encoders are made in `--work` (random weights: time does not depend on them), and used again if they
are there. All of them take turns in one process, so that a machine that warms up or is disturbed
slows all alike. On a machine that others use too, `--threads 1 --cpu-time` counts processor time
instead. `--profile` also prints which kernels each encoder ran, and for how long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS, find_preset
from laco_runtimes.bundle import write_atomic
from laco_runtimes.engines.openvino import latency_config, openvino_core, prepare_encoder
from laco_runtimes.errors import LacoError
from laco_runtimes.manifest import LanguageFacts, VisionFacts

PRECISIONS = ("fp32", "int8", "int8w")
WIDTH = 896
"""Of the language model, Qwen2.5-0.5B, which the projector ends in."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """One compiled encoder."""

    name: str
    request: Any
    seconds: list[float] = field(default_factory=list)


def write_encoder(folder: Path, preset: str, after_block: int) -> None:
    """The fp32 graph of an encoder with one LaCo merger."""
    import torch

    from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
    from laco_export.graphs import VisionGraph
    from laco_export.onnx_writer import ENCODER_OPS, write_graph
    from laco_runtimes import graphs

    # A language model of one layer: only its width matters here.
    text = {
        **LANGUAGE_PRESETS["qwen2.5-0.5b"].settings,
        "model_type": "qwen2",
        "num_hidden_layers": 1,
        "vocab_size": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = LacoConfig(
        vision_config=VISION_PRESETS[preset].config().to_dict(),
        text_config=text,
        mergers=[{"after_block": after_block}],
    )
    torch.manual_seed(0)
    model: Any = LacoForConditionalGeneration(config)
    model.eval()
    spec = graphs.vision_encoder(config.image_size, config.tokens_per_tile, WIDTH)
    write_graph(VisionGraph(model), spec, folder / "onnx", allowed_ops=ENCODER_OPS)
    facts = {"tokens_per_tile": config.tokens_per_tile, "image_size": config.image_size}
    write_atomic(folder / "facts.json", json.dumps(facts).encode())


def compile_encoder(folder: Path, precision: str, images: int) -> Path:
    """What the target openvino makes of it; calibrated on noise, which time does not depend on."""
    from laco_export.ranges import measure_ranges
    from laco_export.targets import CompileRequest
    from laco_export.targets.openvino import TARGET
    from laco_runtimes import graphs

    facts = json.loads((folder / "facts.json").read_text())
    side = facts["image_size"]
    root = folder / precision
    root.mkdir(exist_ok=True)
    if not (root / "onnx").exists():
        (root / "onnx").symlink_to(Path("..") / "onnx")
    start = time.perf_counter()
    ranges = None
    if precision in TARGET.calibrated:
        ranges = root / "ranges.npz"
        noise = np.random.default_rng(0).standard_normal((images, 3, side, side), "f4")
        measure_ranges(folder / "onnx" / "vision_encoder.onnx", noise, ranges, lambda: None)
    path = TARGET.compile(
        CompileRequest(
            root=root,
            onnx="onnx/vision_encoder.onnx",
            spec=graphs.vision_encoder(side, facts["tokens_per_tile"], WIDTH),
            language=LanguageFacts(
                model_type="qwen2",
                layers=1,
                hidden_size=WIDTH,
                heads=14,
                kv_heads=2,
                head_dim=64,
                vocab_size=64,
                max_positions=64,
            ),
            vision=VisionFacts(
                model_type="encoder", blocks=1, width=1, image_size=side, patch_size=1
            ),
            precision=precision,
            calibration=ranges,
        )
    )
    print(f"{root}: compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return root / path


def loaded(name: str, path: Path, threads: int | None, profile: bool) -> Encoder:
    """Compiled for the CPU as the engine does it."""
    core = openvino_core()
    config: dict[str, Any] = latency_config(core, "CPU")
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    if profile:
        config["PERF_COUNT"] = True
    model = core.read_model(path)
    prepare_encoder(core, model)
    return Encoder(name, core.compile_model(model, "CPU", config).create_infer_request())


def measure(
    encoders: Sequence[Encoder],
    pixels: np.ndarray[Any, Any],
    rounds: int,
    clock: Callable[[], float],
) -> None:
    """All encoders in turns; the first round is not counted."""
    for number in range(rounds + 1):
        turn = number % len(encoders)  # so that none always follows the same one
        for encoder in (*encoders[turn:], *encoders[:turn]):
            start = clock()
            encoder.request.infer({"pixel_values": pixels}, share_inputs=True)
            if number:
                encoder.seconds.append(clock() - start)
        print(f"round {number} of {rounds}", file=sys.stderr)


def kernels(encoder: Encoder) -> list[tuple[str, float, int]]:
    """Operator and kernel, milliseconds and how many nodes, of the last inference."""
    total: dict[str, tuple[float, int]] = {}
    for node in encoder.request.profiling_info:
        time_ms = node.real_time.total_seconds() * 1e3
        if time_ms > 0:
            key = f"{node.node_type} {node.exec_type}"
            before = total.get(key, (0.0, 0))
            total[key] = (before[0] + time_ms, before[1] + 1)
    return sorted(((key, *value) for key, value in total.items()), key=lambda row: -row[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--preset", default="aimv2-large-448", help=", ".join(VISION_PRESETS))
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"], choices=PRECISIONS)
    parser.add_argument("--calibration-images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="by default OpenVINO's own choice")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not real time")
    parser.add_argument("--profile", action="store_true", help="print time by kernel")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    try:
        preset = find_preset("vision encoder", options.preset, VISION_PRESETS)
    except LacoError as error:
        parser.error(str(error))
    blocks = preset.config().num_hidden_layers
    encoders = []
    for name, after_block in (("LaCo@1/4", blocks // 4), ("LaCo@1", blocks)):
        folder = options.work / f"{options.preset}-{after_block}"
        if not (folder / "facts.json").exists():
            write_encoder(folder, options.preset, after_block)
        for precision in options.precision:
            found = sorted((folder / precision / "openvino").glob("*.xml"))
            path = (
                found[0]
                if found
                else compile_encoder(folder, precision, options.calibration_images)
            )
            encoders.append(loaded(f"{name} {precision}", path, options.threads, options.profile))
    side = preset.config().image_size
    pixels = np.random.default_rng(1).standard_normal((1, 3, side, side), np.float32)
    clock = time.process_time if options.cpu_time else time.perf_counter
    measure(encoders, pixels, options.rounds, clock)
    whole = {one.name.split()[1]: one for one in encoders if one.name.startswith("LaCo@1 ")}
    print("| encoder | min ms | median ms | / LaCo@1 in the same precision | / LaCo@1 fp32 |")
    print("|---|---|---|---|---|")
    figures = []
    for one in encoders:
        same, exact = whole[one.name.split()[1]], whole.get("fp32")
        ratios = {
            key: statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))
            for key, other in (("same_precision", same), ("fp32", exact))
            if other is not None
        }
        figures.append({"encoder": one.name, "seconds": one.seconds, "ratios": ratios})
        print(
            f"| {one.name} | {1e3 * min(one.seconds):.1f} "
            f"| {1e3 * statistics.median(one.seconds):.1f} | {ratios['same_precision']:.3f} "
            f"| {ratios.get('fp32', float('nan')):.3f} |"
        )
    if options.profile:
        for one in encoders:
            print(f"\n{one.name}")
            for key, milliseconds, nodes in kernels(one)[:12]:
                print(f"{milliseconds:9.1f} ms {nodes:4d} x {key}")
    if options.json:
        write_atomic(options.json, (json.dumps(figures, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
