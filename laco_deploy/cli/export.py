"""`laco export`, also installed as `laco-export`."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from laco_deploy.terminal import say, show

if TYPE_CHECKING:
    from laco_export.exporter import ExportResult

NEEDED = (
    *("laco_deploy.exporting", "laco_export.writing", "laco_export.stages"),
    *("networkx", "onnxscript.function_libs.torch_lib.ops"),  # by what traces a model
)
"""What the stages of an export import."""

Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]


def export(
    *,
    ckpt: Path,
    target: str,
    out: Path,
    precision: str = "exact",
    vision_precision: str | None = None,
    llm_precision: str | None = None,
    calibration: Path | None = None,
    baseline: Names = (),
    layout: Names = (),
    context: int | None = None,
    decoder: str | None = None,
    parity_data: Path | None = None,
    parity_images: int | None = None,
    keep_source: bool = False,
    json: bool = False,
) -> None:
    """Compile a checkpoint for an engine and check that the engine answers as PyTorch does.

    Examples:

    * `laco export --ckpt samples/laco-tiny --target openvino --out engine/`
    * `laco export --ckpt ckpt/ --target openvino --precision fast --out engine/`
    * `laco export --ckpt ckpt/ --target onnxruntime --vision-precision fp32 --llm-precision int4
      --out engine/`
    * `laco export --ckpt ckpt/ --target openvino --precision int8 --calibration photos/
      --baseline uncompressed,external --out engine/`

    Parameters
    ----------
    ckpt
        Checkpoint folder that `laco train` or `laco init` wrote.
    target
        Engine: onnxruntime, openvino, tensorrt or tensorrt-rtx.
    out
        Bundle folder to write. An older bundle there is replaced when the new one is complete.
    precision
        Precision of the weights: fp32, fp16, bf16, int8, int4 or fp8, as far as the target has it;
        or a preset: exact, the target's most faithful (fp32; fp16 for TensorRT), or fast, its first
        that parity allows.
    vision_precision
        Precision of the vision encoder, instead: also int8w, 8-bit weights with float activations.
    llm_precision
        Precision of the language model, instead.
    calibration
        Folder of images like those the model will see, for int8 and fp8 of the vision encoder: up
        to 64 are used, 4 for a large encoder, and 9 rendered extremes beside them. Default: the
        images that parity is checked on.
    baseline
        Encoders to measure against, comma-separated: uncompressed; external, with the same mergers
        behind it; downsampled, uncompressed on an image so small that it has as few tokens. For
        latency only.
    layout
        Further layouts to write for other runtimes, comma-separated; which ones there are depends
        on the target: onnxruntime has transformersjs and onnxruntime-genai.
    context
        Tokens that the KV cache holds, for targets where its size is fixed.
    decoder
        Decoder flavour for older engines, as the target has it: stateful, static, contrib, concat.
    parity_data
        JSON file in the format of LLaVA with images to compare on. Default: the checkpoint's own
        test images. Rendered patterns fill up where there are fewer than --parity-images.
    parity_images
        Images to compare on, at least 64, which is the default, and 16 adversarial ones on top; of
        a model of more than 250 million weights at least 16, and 8 on top. 0 compares nothing and
        seals the bundle as unverified.
    keep_source
        Leave the fp32 graphs in the bundle also where the engine does not load them.
    json
        Print what was done as JSON, with seconds and peak memory of every stage.
    """
    import laco_export  # noqa: F401 - first: it names the extra to install when torch is missing
    from laco_export.memory import LARGE_BYTES
    from laco_export.processes import prepare

    if _weights_bytes(ckpt) > LARGE_BYTES / 2:  # the files may be of 16 bits
        prepare(NEEDED)
    from laco_deploy.exporting import default_plan, export_checkpoint
    from laco_deploy.parity_data import calibration_images, parity_samples
    from laco_deploy.terminal import stage_bar
    from laco_export.exporter import check_target
    from laco_export.targets import TargetOptions

    images = calibration_images(calibration) if calibration is not None else ()
    check_target(target)  # before the checkpoint is opened: a wrong word is said first
    plan = default_plan(ckpt)
    with stage_bar() as progress:
        result = export_checkpoint(
            ckpt,
            out,
            target=target,
            precision=precision,
            vision_precision=vision_precision,
            llm_precision=llm_precision,
            baselines=_names(baseline),
            calibration=images,
            options=TargetOptions(_names(layout), context, decoder),
            keep_source=keep_source,
            parity_samples=parity_samples(ckpt, parity_data, parity_images, plan),
            plan=plan,
            progress=progress,
        )
    if json:
        print(json_module.dumps(_as_json(result), indent=2))
    else:
        _show(result)


def _weights_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


def _names(entries: Iterable[str]) -> tuple[str, ...]:
    """`--baseline a,b --baseline c` is the same as `--baseline a b c`."""
    return tuple(name for entry in entries for name in entry.split(",") if name)


def _show(result: ExportResult) -> None:
    from laco_export.card import parity_rows

    manifest, parity = result.manifest, result.manifest.parity
    for sentence in result.passed_over:
        say(f"passed over: {sentence}")
    if result.calibrated:
        say(f"calibrated on {result.calibrated} images")
    if parity is None:
        say(f"unverified: {manifest.unverified}", style="yellow")
    else:
        table = Table(box=None)
        for title in ("stage", "figure", "found", "asked for", ""):
            table.add_column(title, justify="right" if title == "found" else "left")
        for row in parity_rows(parity):
            table.add_row(*row)
        show(table)
        say(f"parity on {manifest.target}: {parity.summary}")
        if parity.ties:
            say(f"{parity.ties} other tokens at ties, where the best two are as good as equal")
    for variant in manifest.variants:
        say(
            f"{variant.name}: {manifest.said_tokens(variant)}"
            + (" (for latency only)" if variant.latency_only else "")
        )
    modules = ", ".join(f"{name} {value}" for name, value in manifest.precision.items())
    say(
        f"{result.path}: {modules}, {result.size_bytes / 1e6:.1f} MB in {len(manifest.files)} "
        f"files, {result.total_seconds:.1f} s, "
        f"at most {max(result.peak_bytes.values()) / 1e9:.1f} GB of memory in a process"
    )


def _as_json(result: ExportResult) -> dict[str, Any]:
    manifest = result.manifest
    return {
        "path": str(result.path),
        "target": manifest.target,
        "precision": manifest.precision,
        "parity": manifest.parity and manifest.parity.model_dump(mode="json"),
        "unverified": manifest.unverified,
        "passed_over": list(result.passed_over),
        "calibration_images": result.calibrated,
        "size_bytes": result.size_bytes,
        "total_seconds": result.total_seconds,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
    }


__all__ = ["export"]
