"""Memory of this machine that can still be had, and sizes for people."""

from __future__ import annotations

import os
import re
from pathlib import Path

GB = 1e9


def available_bytes() -> int | None:
    """Memory that can still be had, within the limit of a container; None where nobody says."""
    found = [value for value in (_meminfo("MemAvailable"), _cgroup_left()) if value is not None]
    return min(found, default=None)


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


__all__ = ["GB", "available_bytes", "readable"]
