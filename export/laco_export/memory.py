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


def forecast(job: ExportJob, *, calibrated: bool = False) -> Forecast:
    """What an export of this job will take.

    The factors are estimates, from OpenVINO. Compiling to int8: 4.9 GB for a decoder of 0.5 billion
    weights (2 GB); with activations 5.6 GB for AIMv2-Large (1.2 GB), 7.0 GB for SigLIP-SO400M
    (1.7 GB).

    Args:
        job: what to export.
        calibrated: whether activations of the vision encoder are rounded as well.
    """
    encoder, embedding, decoder = (
        4 * count for count in (job.size.vision_encoder, job.size.embed_tokens, job.size.decoder)
    )
    # The matrix of the embeddings is usually that of the head as well, and held once.
    weights = encoder + decoder
    return Forecast(
        {
            "graphs": _BASE + int(1.3 * weights),
            "reference": _BASE + int(1.5 * (encoder + embedding + decoder)),
            "compile": _BASE + int(max((4.5 if calibrated else 2.5) * encoder, 2.5 * decoder)),
            "parity": _BASE + int(1.5 * (encoder + embedding + decoder)),
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
