"""Energy per request, from the meters that a machine has.

Every meter counts more than this process: whole packages, boards, graphics cards, idle or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from laco_deploy.benchmark.sampler import Sampler

POWERCAP = Path("/sys/class/powercap")
HWMON = Path("/sys/class/hwmon")
RAIL_OF_ALL = ("VDD_IN", "POM_5V_IN")
"""Labels of the rail that feeds all others: Jetson Orin Nano, Orin NX and Xavier NX; Nano, TX2."""
RAIL_BEHIND_ANOTHER = ("VDDQ_VDD2_1V8AO",)
"""Rails of a board without a rail of all (AGX Orin) that hang behind another one there."""


class Meter(Protocol):
    """Counts joules between `__enter__` and `__exit__`."""

    name: str
    covers: str
    """What is behind it, in words."""
    counted: bool
    """False where another counted meter holds the same energy."""

    def joules(self) -> float:
        """Since `__enter__`.

        Raises:
            OSError: the meter cannot be read any more.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """Meters of one kind, or why there are none."""

    meters: tuple[Meter, ...]
    missing: str | None = None


@dataclass(slots=True)
class Counter:
    """A meter that counts energy by itself, up to a range at which it begins again."""

    name: str
    covers: str
    counted: bool
    read: Callable[[], float]
    """Joules."""
    range_joules: float | None = None
    _last: float = 0.0
    _sum: float = 0.0

    def joules(self) -> float:
        """Since `__enter__`; one turn of the range between two calls is noticed, two are not."""
        now = self.read()
        step = now - self._last
        if step < 0 and self.range_joules is not None:
            step += self.range_joules
        self._last, self._sum = now, self._sum + step
        return self._sum

    def __enter__(self) -> Self:
        self._last, self._sum = self.read(), 0.0
        return self

    def __exit__(self, *_: object) -> None: ...


@dataclass(slots=True)
class PowerRail:
    """A meter that tells power, integrated over time in a thread."""

    name: str
    covers: str
    counted: bool
    read: Callable[[], float]
    """Watts."""
    _sampler: Sampler | None = None

    def joules(self) -> float:
        """Since `__enter__`, by the trapezoidal rule."""
        return 0.0 if self._sampler is None else self._sampler.integral()

    def __enter__(self) -> Self:
        self._sampler = Sampler(self.read)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._sampler is not None:
            self._sampler.stop()


def find_rapl(device: str, root: Path = POWERCAP) -> Found:
    """Intel's and AMD's counters in the kernel's powercap tree (Documentation/power/powercap).

    Packages and memory are counted; a package's cores and graphics are a part of it, and `psys`,
    the whole board, holds the packages.
    """
    zones = sorted(root.glob("intel-rapl:*"))
    if not zones:
        return Found((), "no RAPL counter in /sys/class/powercap (a virtual machine has none)")
    meters = []
    for zone in zones:
        try:
            label = (zone / "name").read_text(encoding="ascii").strip()
            range_joules = _micro(zone / "max_energy_range_uj")
            _micro(zone / "energy_uj")
        except PermissionError:
            return Found(
                (), "RAPL counters are for root to read; allow it: "
                "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
            )  # fmt: skip
        except (OSError, ValueError) as error:
            return Found((), f"the RAPL counter {zone.name} cannot be read ({error})")
        meters.append(
            Counter(
                name=f"rapl:{zone.name.removeprefix('intel-rapl:')} {label}",
                covers=_RAPL_COVERS.get(label.split("-")[0], f"the zone {label}"),
                counted=label.startswith("package") or label == "dram",
                read=lambda path=zone / "energy_uj": _micro(path),  # type: ignore[misc]
                range_joules=range_joules,
            )
        )
    return Found(tuple(meters))


_RAPL_COVERS = {
    "package": "the whole processor",
    "dram": "the memory",
    "core": "the processor's cores, a part of the package",
    "uncore": "the processor's graphics, a part of the package",
    "psys": "the whole board, processor included",
}


def find_ina3221(device: str, root: Path = HWMON) -> Found:
    """The power monitor of a Jetson board, through hwmon (the kernel's Documentation/hwmon).

    Its channels tell millivolts and milliamperes.
    """
    rails: list[tuple[str, Path, str]] = []
    for chip in sorted(root.glob("hwmon*")):
        if _text(chip / "name") != "ina3221":
            continue
        for label in sorted(chip.glob("in*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            # The chip's own sums of channels have labels too, but no current beside them.
            if (chip / f"curr{number}_input").exists() and (chip / f"in{number}_input").exists():
                rails.append((_text(label), chip, number))
    if not rails:
        return Found((), "no INA3221 power monitor in /sys/class/hwmon (Jetson boards have one)")
    labels = {label for label, _, _ in rails}
    whole = next((label for label in RAIL_OF_ALL if label in labels), None)
    meters = []
    for rail, chip, number in rails:
        counted = rail == whole if whole else rail not in RAIL_BEHIND_ANOTHER
        read = _rail_watts(chip, number)
        try:
            read()
        except (OSError, ValueError) as error:
            return Found((), f"the power rail {rail} cannot be read ({error})")
        covers = "the whole board" if rail == whole else f"the rail {rail}"
        meters.append(PowerRail(f"ina3221:{rail}", covers, counted, read))
    return Found(tuple(meters))


def find_nvml(device: str, module: str = "pynvml") -> Found:
    """NVIDIA's GPU in use, where the package `nvidia-ml-py` is installed.

    Args:
        device: in the engine's own words, `cuda:0 (NVIDIA H200)`.
    """
    index = cuda_index(device)
    if index is None:
        return Found((), "the engine does not run on an NVIDIA GPU")
    try:
        nvml = import_module(module)
    except ImportError:
        return Found((), "the package nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = f"nvml:{index} {_decoded(nvml.nvmlDeviceGetName(handle))}"
    except Exception as error:  # NVMLError of whatever kind
        return Found((), f"NVML refused: {error}")
    covers = "the whole graphics card"
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # before Volta, and on some boards
        return _nvml_power(nvml, handle, name, covers)

    def joules() -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

    return Found((Counter(name, covers, True, joules),))


def _nvml_power(nvml: Any, handle: Any, name: str, covers: str) -> Found:
    def watts() -> float:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1e3

    try:
        watts()
    except Exception as error:
        return Found((), f"the GPU tells neither energy nor power ({error})")
    return Found((PowerRail(name, covers, True, watts),))


def cuda_index(device: str) -> int | None:
    """Number of the NVIDIA GPU in an engine's own words; None where it names no such GPU."""
    if not re.match(r"cuda", device, re.IGNORECASE):
        return None
    found = re.match(r"cuda:(\d+)", device, re.IGNORECASE)
    return int(found[1]) if found else 0


METERS: dict[str, Callable[[str], Found]] = {
    "rapl": find_rapl,
    "ina3221": find_ina3221,
    "nvml": find_nvml,
}
"""Kinds of meters; each is asked with the device in the engine's own words."""


@contextmanager
def running(meters: Sequence[Meter]) -> Iterator[Sequence[Meter]]:
    """All meters at work."""
    with ExitStack() as stack:
        for meter in meters:
            stack.enter_context(meter)
        yield meters


def find_meters(device: str) -> Found:
    """All meters of this machine that count what the benchmark uses; else all reasons.

    A GPU without its meter leaves the energy unknown, whatever the processor's counters tell.
    """
    found = {kind: find(device) for kind, find in METERS.items()}
    meters = tuple(meter for one in found.values() for meter in one.meters)
    reasons = "; ".join(one.missing for one in found.values() if one.missing)
    if cuda_index(device) is not None and not found["nvml"].meters:
        return Found((), found["nvml"].missing)
    return Found(meters) if any(meter.counted for meter in meters) else Found((), reasons)


def _rail_watts(chip: Path, number: str) -> Callable[[], float]:
    volts, amperes = chip / f"in{number}_input", chip / f"curr{number}_input"
    return lambda: int(_line(volts)) * int(_line(amperes)) / 1e6


def _micro(path: Path) -> float:
    return int(_line(path)) / 1e6


def _line(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _decoded(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


__all__ = [
    "METERS",
    "Counter",
    "Found",
    "Meter",
    "PowerRail",
    "cuda_index",
    "find_ina3221",
    "find_meters",
    "find_nvml",
    "find_rapl",
    "running",
]
