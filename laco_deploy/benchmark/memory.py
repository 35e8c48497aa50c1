"""Peak memory: of this process, and of a GPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from laco_deploy.benchmark.energy import cuda_index
from laco_deploy.benchmark.sampler import Sampler


def peak_resident_bytes() -> int | None:
    """Most memory this process has held since it began its program; None where it is unknown.

    On Linux from /proc: `getrusage` counts what was there before `execve` too, so it gives a child
    at least the memory of the process that started it.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes there
    return None


@dataclass(slots=True)
class DeviceMemory:
    """Filled in when the watch ends."""

    peak_bytes: int | None = None
    note: str | None = None


@contextmanager
def device_memory(device: str, module: str = "pynvml") -> Iterator[DeviceMemory]:
    """Watch the memory of the GPU in use, in a thread: the most beyond what was in use before.

    Args:
        device: in the engine's own words.
        module: import name of NVML's Python package.
    """
    found = DeviceMemory()
    index = cuda_index(device)
    if index is None:
        found.note = f"only an NVIDIA GPU's memory can be told, and this ran on {device}"
        yield found
        return
    try:
        nvml = import_module(module)
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        before = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        sampler = Sampler(lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used))
        sampler.start()
    except ImportError:
        found.note = "the package nvidia-ml-py is not installed"
        yield found
        return
    except Exception as error:  # NVMLError of whatever kind
        found.note = f"NVML refused: {error}"
        yield found
        return
    try:
        yield found
    finally:
        try:
            sampler.stop()
        except Exception as error:
            found.note = f"NVML refused: {error}"
        else:
            most = int(sampler.largest) - before
            found.peak_bytes = most if most > 0 else None
            found.note = None if most > 0 else "nothing was allocated on the GPU"


__all__ = ["DeviceMemory", "device_memory", "peak_resident_bytes"]
