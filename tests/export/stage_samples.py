"""Stages for processes of their own, which find them here by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from laco_export.progress import Steps, stage
from laco_runtimes.errors import MissingPackageError, ParityError


def grow(steps: Steps, megabytes: int) -> int:
    """Hold memory; the id of the process."""
    with stage(steps, "grow", count=2):
        held = np.ones(megabytes * 125_000)
    return os.getpid() if held.all() else 0


def imported(steps: Steps, name: str) -> bool:
    """Whether a module is there that nothing here imports."""
    return name in sys.modules


def wait(steps: Steps, path: Path) -> None:
    """Say who waits, for ever."""
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").replace(path)
    time.sleep(600)


def miss(steps: Steps) -> None:
    raise ParityError("the engine misses. Try another.")


def lack(steps: Steps) -> None:
    raise MissingPackageError("nncf", "openvino")


def break_down(steps: Steps) -> None:
    raise ZeroDivisionError("a defect")


def die(steps: Steps) -> None:
    steps.enter("die")
    os.kill(os.getpid(), signal.SIGKILL)


def meet(steps: Steps, folder: Path, name: str, other: str) -> str:
    """Wait for another stage, at most a minute."""
    with stage(steps, f"meet {other}"):
        (folder / name).touch()
        end = time.monotonic() + 60
        while not (folder / other).exists():
            if time.monotonic() > end:
                raise ParityError(f"{other} never came. Try another.")
            time.sleep(0.05)
    return name
