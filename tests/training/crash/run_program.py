"""Run a program of this folder in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_program(name: str, *arguments: str) -> str:
    """What it printed. With one thread, since a process with more cannot fork safely."""
    paths = [ROOT, ROOT / "export", ROOT / "runtimes"]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.training.crash.{name}", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
