"""`laco export`, also installed as `laco-export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def export(
    *,
    ckpt: Path,
    target: str,
    out: Path,
    precision: str = "fp32",
    baseline: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    parity_data: Path | None = None,
) -> None:
    """Compile a checkpoint for an engine and check that the engine answers as PyTorch does.

    Example: `laco export --ckpt samples/laco-tiny --target openvino --out engine/`

    Parameters
    ----------
    ckpt
        Checkpoint folder that `laco train` wrote.
    target
        Engine: onnxruntime or openvino.
    out
        Bundle folder to write. An older bundle there is replaced when the new one is complete.
    precision
        Precision of the weights: fp32.
    baseline
        Encoders to measure against, comma-separated: uncompressed, external. For latency only.
    parity_data
        JSON file in the format of LLaVA with at least 16 images to compare on. Default: the
        checkpoint's own test images, or else rendered patterns.
    """
    import laco_export  # noqa: F401 - first: it names the extra to install when torch is missing
    from laco_deploy.exporting import export_checkpoint
    from laco_deploy.parity_data import parity_samples
    from laco_deploy.terminal import say, stage_bar

    with stage_bar() as progress:
        result = export_checkpoint(
            ckpt,
            out,
            target=target,
            precision=precision,
            baselines=tuple(name for entry in baseline for name in entry.split(",") if name),
            parity_samples=parity_samples(ckpt, parity_data),
            progress=progress,
        )
    parity = result.parity.parity
    say(
        f"parity on {target}: {parity.greedy_identical} of {parity.images} answers are PyTorch's, "
        f"cosine of a visual token at least {parity.visual_token_cosine_min:.7f}, "
        f"logits differ by at most {parity.logits_max_abs_difference:.1e}"
    )
    for tie in result.parity.ties:
        say(tie)
    for variant in result.manifest.variants:
        say(
            f"{variant.name}: {variant.tokens_per_tile} visual tokens per image"
            + (" (for latency only)" if variant.latency_only else "")
        )
    say(
        f"{result.path}: {result.size_bytes / 1e6:.1f} MB in {len(result.manifest.files)} files, "
        f"{sum(result.seconds.values()):.1f} s"
    )


__all__ = ["export"]
