"""How much memory an export takes: foretold from facts, and measured."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a process that only measures itself needs no torch
    from laco_export.job import ExportJob

GB = 1e9

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


def forecast(job: ExportJob) -> Forecast:
    """What an export of this job will take.

    The factors are estimates. The one of compiling stands on one figure: 4.9 GB for a decoder of
    0.5 billion weights (2 GB) to int8 with OpenVINO.
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
            "compile": _BASE + int(2.5 * max(encoder, decoder)),
            "parity": _BASE + int(1.5 * (encoder + embedding + decoder)),
        }
    )


def available_bytes() -> int | None:
    """Memory that can still be had, within the limit of a container; None where nobody says."""
    found = [value for value in (_meminfo("MemAvailable"), _cgroup_left()) if value is not None]
    return min(found, default=None)


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


def readable(count: float) -> str:
    """Bytes for people."""
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"


def _meminfo(key: str) -> int | None:
    path = Path("/proc/meminfo")
    if path.exists() and (found := re.search(rf"{key}:\s+(\d+) kB", path.read_text())):
        return int(found.group(1)) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, macOS
        return None


def _cgroup_left() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return int(limit) - used if limit.isdecimal() else None


__all__ = ["LARGE_BYTES", "Forecast", "available_bytes", "forecast", "peak_bytes", "readable"]
