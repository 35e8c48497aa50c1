"""Stages for processes of their own, which find them here by name."""

from __future__ import annotations

import os
import signal

import numpy as np

from laco_export.progress import Steps, stage
from laco_runtimes.errors import MissingPackageError, ParityError


def grow(steps: Steps, megabytes: int) -> int:
    """Hold memory; the id of the process."""
    with stage(steps, "grow", count=2):
        held = np.ones(megabytes * 125_000)
    return os.getpid() if held.all() else 0


def miss(steps: Steps) -> None:
    raise ParityError("the engine misses. Try another.")


def lack(steps: Steps) -> None:
    raise MissingPackageError("nncf", "openvino")


def break_down(steps: Steps) -> None:
    raise ZeroDivisionError("a defect")


def die(steps: Steps) -> None:
    steps.enter("die")
    os.kill(os.getpid(), signal.SIGKILL)
