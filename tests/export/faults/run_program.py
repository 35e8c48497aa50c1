"""Run a program of this folder in a process of its own: it forks, which pytest's must not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def run_program(name: str, *arguments: object, before: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON object that `tests.export.faults.<name>` prints last.

    Args:
        name: of the module.
        arguments: for it.
        before: a command to run it with.
    """
    done = subprocess.run(
        [*before, sys.executable, "-m", f"tests.export.faults.{name}", *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",  # a fork keeps none of the other threads
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
