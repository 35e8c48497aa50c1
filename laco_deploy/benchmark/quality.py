"""What disturbs a measurement: other processes, a falling clock, heat."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from laco_deploy.benchmark.request import Clock
from laco_deploy.benchmark.schema import Drift, Load, Quality

ROOT = Path("/")
OTHERS_SHARE = 0.05
"""Processor time of others that is worth a word."""
FREQUENCY_FALL = 0.05
"""Share of the frequency that may be lost without a word."""
FEW_ROUNDS = 6
"""Rounds under which a bootstrap interval is too narrow to be called one of 95 %."""
READINGS = 2000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters of the machine and of this process at one moment."""

    wall: float
    """Seconds."""
    own_cpu: float
    """Seconds, all threads."""
    cores: tuple[float, float] | None
    """Processor seconds of the usable cores that all processes had, and those that there were, idle
    ones included; None where it is unknown."""
    load_average: float | None
    switches: int | None
    mhz: float | None

    @classmethod
    def take(cls, root: Path = ROOT) -> Snapshot:
        """Read what can be read; `root` stands for `/` of Linux."""
        cores = usable_cores()
        return cls(
            wall=time.perf_counter(),
            own_cpu=time.process_time(),
            cores=cpu_seconds(_text(root / "proc/stat"), cores),
            load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            switches=_involuntary_switches(),
            mhz=mean_mhz(root, cores),
        )


def quality(
    before: Snapshot,
    after: Snapshot,
    drifted: Drift | None,
    *,
    clock_read_ns: float,
    runs: int,
    more: Sequence[str] = (),
) -> Quality:
    """What disturbed the rounds between two snapshots.

    Args:
        more: further sentences for the notes.
    """
    load = _load(before, after)
    return Quality(
        drift=drifted,
        load=load,
        cpu_mhz_start=before.mhz,
        cpu_mhz_end=after.mhz,
        clock_read_ns=clock_read_ns,
        notes=(*_notes(load, drifted, before.mhz, after.mhz, runs), *more),
    )


def _load(before: Snapshot, after: Snapshot) -> Load:
    own = max(0.0, after.own_cpu - before.own_cpu)
    share = None
    if before.cores is not None and after.cores is not None:
        busy, total = (end - start for start, end in zip(before.cores, after.cores, strict=True))
        # The kernel counts in ticks of 10 ms: over less than a few of them this says nothing.
        share = min(1.0, max(0.0, (busy - own) / total)) if total > 0.1 else None
    switches = None
    if before.switches is not None and after.switches is not None:
        switches = after.switches - before.switches
    return Load(
        wall_seconds=max(0.0, after.wall - before.wall),
        own_cpu_seconds=own,
        others_share=share,
        load_average_start=before.load_average,
        load_average_end=after.load_average,
        involuntary_switches=switches,
        detected=share is not None and share > OTHERS_SHARE,
    )


def _notes(
    load: Load, drifted: Drift | None, start: float | None, end: float | None, runs: int
) -> Iterator[str]:
    if load.detected and load.others_share is not None:
        yield (
            f"Other processes had {load.others_share:.0%} of the processor time during the rounds; "
            "times are too long, ratios less so."
        )
    if drifted is not None and drifted.detected:
        what = "slower" if drifted.percent_in_all > 0 else "faster"
        yield (
            f"Requests of {drifted.variant} became {what} by {abs(drifted.percent_in_all):.1f} % "
            "from the first round to the last, as when a machine grows hot or another process "
            "starts or ends."
        )
    if start is not None and end is not None and end < start * (1 - FREQUENCY_FALL):
        yield f"The processor's frequency fell from {start:.0f} to {end:.0f} MHz."
    if runs < FEW_ROUNDS:
        rounds = "1 round is" if runs == 1 else f"{runs} rounds are"
        yield f"{rounds} too few for a confidence interval to be taken at its word."


def clock_cost_ns(clock: Clock) -> float:
    """Cost of one reading of a clock, in nanoseconds."""
    start = clock()
    for _ in range(READINGS - 1):
        clock()
    return (clock() - start) / READINGS


def cpu_seconds(stat: str, cores: Sequence[int]) -> tuple[float, float] | None:
    """Busy and all seconds of some cores in the text of `/proc/stat` (proc(5)).

    Time that a hypervisor gave to another machine counts as busy.
    """
    wanted = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in stat.splitlines()]
    ticks = [[int(value) for value in row[1:9]] for row in rows if row and row[0] in wanted]
    if not ticks or any(len(row) < 5 for row in ticks):
        return None
    hertz = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    total = sum(map(sum, ticks))
    idle = sum(row[3] + row[4] for row in ticks)  # idle and waiting for a disk
    return (total - idle) / hertz, total / hertz


def mean_mhz(root: Path, cores: Sequence[int]) -> float | None:
    """Mean frequency of some cores now; None where the system does not tell."""
    folder = root / "sys/devices/system/cpu"
    found = [_text(folder / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    mhz = [int(text) / 1000 for text in found if text.strip().isdigit()]
    if not mhz:
        lines = re.findall(r"^cpu MHz\s*: ([\d.]+)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
        mhz = [float(line) for line in lines]
    return sum(mhz) / len(mhz) if mhz else None


def usable_cores() -> list[int]:
    """Numbers of the logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _involuntary_switches() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


__all__ = [
    "Snapshot",
    "clock_cost_ns",
    "cpu_seconds",
    "mean_mhz",
    "quality",
    "usable_cores",
]
