"""How much memory an export takes: foretold from facts, and measured."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laco_runtimes.memory import available_bytes, readable

if TYPE_CHECKING:  # a process that only measures itself needs no torch
    from laco_export.job import ExportJob

LARGE_BYTES = 1_000_000_000
"""Models with more weights than this, in float32, are handled in processes of their own."""

_BASE = 700_000_000
"""Of a Python process with torch and an engine in it."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes that each stage will hold at most, where stages run apart."""

    stages: dict[str, int]

    @property
    def peak(self) -> int:
        """Of the hungriest stage."""
        return max(self.stages.values())

    def __str__(self) -> str:
        worst = max(self.stages, key=lambda name: self.stages[name])
        return f"{readable(self.peak)} ({worst})"


def forecast(job: ExportJob, *, calibrated: bool = False, beside: bool = False) -> Forecast:
    """What an export of this job will take.

    The factors are estimates, from OpenVINO. Compiling to int8: 3.4 GB for a decoder of 0.5 billion
    weights (2 GB); with activations, whose ranges are known, 2.3 GB for AIMv2-Large (1.2 GB), 2.9
    GB for SigLIP-SO400M (1.7 GB); calibrating 2.3 and 2.7 GB.

    Args:
        job: what to export.
        calibrated: whether activations of the vision encoder are rounded, by ranges that a stage of
            their own finds.
        beside: whether processes for both halves of the model run at the same time.
    """
    encoder, embedding, decoder = (
        4 * count for count in (job.size.vision_encoder, job.size.embed_tokens, job.size.decoder)
    )
    # The matrix of the embeddings is usually that of the head as well, and held once.
    weights, graphs = encoder + decoder, encoder + embedding + decoder
    halves = int((1.3 if calibrated else 2.5) * encoder), int(1.5 * decoder)
    return Forecast(
        {
            # Beside the encoder's process that of the decoder maps the same files.
            "graphs": _BASE * (1 + beside) + int(1.3 * weights + 0.8 * decoder * beside),
            "reference": _BASE + int(1.1 * graphs),
            "calibration": _BASE + int(1.3 * encoder * calibrated),
            # Behind the encoder, and so beside the decoder, the fp32 graphs are asked again.
            "compile": _BASE * (1 + beside)
            + (max(halves[0], graphs) + halves[1] if beside else max(halves)),
            "parity": _BASE + int((1 if calibrated else 1.5) * graphs),
        }
    )


def peak_bytes() -> int:
    """Most physical memory that this process has held; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found.group(1)) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # In bytes on macOS, in kilobytes elsewhere. On Linux it would begin with the parent's.
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


__all__ = ["LARGE_BYTES", "Forecast", "available_bytes", "forecast", "peak_bytes", "readable"]
