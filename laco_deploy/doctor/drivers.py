"""Drivers of accelerators, asked without any package: NVIDIA's by its library, Intel's by Linux."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from ctypes import byref, c_char, c_int, c_size_t
from dataclasses import dataclass
from pathlib import Path

from laco_deploy.doctor.finding import Finding, State
from laco_runtimes.memory import readable

CUDA_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
KERNEL_MODULE = Path("/proc/driver/nvidia/version")

NO_GPU = {34: "the library is a stub", 100: "it sees no GPU"}
"""Results of `cuInit` (enum CUresult of cuda.h) that say that there is nothing to use."""

REMEDIES = {
    802: "Start the service nvidia-fabricmanager, then try again.",
    803: "Restart the machine: the driver's library and its kernel module differ.",
    804: "Remove the forward compatibility package of CUDA, which this GPU does not support.",
}
"""Other results of `cuInit` that have one known cause."""

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def check_nvidia(library: str = CUDA_LIBRARY, module: str = str(KERNEL_MODULE)) -> list[Finding]:
    """NVIDIA's driver, and each GPU with its memory."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        if not Path(module).exists():
            return [_driver("absent", "no driver is installed.")]
        said = f"the kernel has the driver, but {library} is missing here, as in a container."
        return [_driver("note", said, "Start the container with --gpus all.")]
    if code := int(cuda.cuInit(0)):
        if code in NO_GPU:
            return [_driver("note", f"{library} is here, but {NO_GPU[code]}.")]
        remedy = REMEDIES.get(code, "Run nvidia-smi, and install the driver again or restart.")
        return [_driver("failed", f"{library} does not start (cuInit gives {code}).", remedy)]
    version, count = c_int(), c_int()
    cuda.cuDriverGetVersion(byref(version))
    cuda.cuDeviceGetCount(byref(count))
    supports = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return [
        _driver("ok", f"up to CUDA {supports}, {count.value} GPU(s)."),
        *(_gpu(cuda, index) for index in range(count.value)),
    ]


def _gpu(cuda: ctypes.CDLL, index: int) -> Finding:
    device, major, minor, memory = c_int(), c_int(), c_int(), c_size_t()
    name = (c_char * 256)()
    cuda.cuDeviceGet(byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(byref(major), MAJOR, device)
    cuda.cuDeviceGetAttribute(byref(minor), MINOR, device)
    cuda.cuDeviceTotalMem_v2(byref(memory), device)
    said = (
        f"{name.value.decode(errors='replace')}, {readable(memory.value)}, "
        f"compute capability {major.value}.{minor.value}."
    )
    return Finding(area="driver", name=f"nvidia cuda:{index}", state="ok", said=said)


def _driver(state: State, said: str, remedy: str | None = None) -> Finding:
    return Finding(area="driver", name="nvidia", state=state, said=said, remedy=remedy)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of Intel device, as Linux shows it and as OpenVINO calls it."""

    device: str
    nodes: str
    """Its nodes in /sys."""
    place: str
    """Folder of the same nodes in /dev."""
    driver: str


INTEL = "0x8086"
KINDS = (
    _Kind("GPU", "class/drm/renderD*", "dri", "Install Intel's compute runtime: intel-opencl-icd."),
    _Kind("NPU", "class/accel/accel*", "accel", "Install Intel's driver: linux-npu-driver."),
)


def unseen_intel(seen: Sequence[str], root: Path = Path("/")) -> Iterator[Finding]:
    """Intel devices that Linux has and OpenVINO does not see, which is for want of a driver.

    Args:
        seen: devices by OpenVINO's names.
        root: where /sys and /dev are.
    """
    for kind in KINDS:
        if any(name.partition(".")[0] == kind.device for name in seen):
            continue
        for node in sorted((root / "sys").glob(kind.nodes)):
            vendor = node / "device" / "vendor"
            if not vendor.is_file() or vendor.read_text().strip() != INTEL:
                continue
            place = root / "dev" / kind.place / node.name
            allowed = os.access(place, os.R_OK | os.W_OK)
            yield Finding(
                area="driver",
                name=f"intel {kind.device}",
                state="note",
                said=f"{node.name} is there, and OpenVINO does not see it.",
                remedy=kind.driver
                if allowed
                else f"Let your user read and write {place}: sudo usermod -aG render $USER",
            )
            break


__all__ = ["check_nvidia", "unseen_intel"]
