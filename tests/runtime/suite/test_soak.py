"""Two thousand chats leave nothing behind: no memory, no open file, no thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import TINY
from tests.runtime.suite.soak import BLOCKS, slope
from tests.runtime.suite.talk import ENGINES

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="memory and open files are read from /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_2000_chats_leave_nothing_behind(tiny_engines: dict[str, Path], engine: str) -> None:
    folder = {"torch": TINY, **tiny_engines}[engine]
    paths = [ROOT, ROOT / "export", ROOT / "runtimes"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.suite.soak", folder, "2000"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["engine"] == engine
    assert report["bytes_per_request"] < 1000, report
    assert report["upper_95"] < 4000, report
    assert report["files"] <= 0, report
    assert report["threads"] <= 0, report


def test_a_leak_would_be_seen() -> None:
    level = [100_000_000 + (-1) ** n * 50_000 for n in range(BLOCKS)]
    found, upper = slope(100, level)
    assert abs(found) < 100
    assert upper < 1000
    leaking = [one + 100 * 1500 * n for n, one in enumerate(level)]
    found, upper = slope(100, leaking)
    assert found == pytest.approx(1500, abs=100)
    assert upper > found
