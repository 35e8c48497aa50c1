"""Make a bundle over an older one, kill with SIGKILL at random moments, and look what stands there.

A program of its own: see forked.py. Prints one JSON object.

    python -m tests.export.faults.kill_loop FOLDER CHECKPOINT BUNDLE --moments 40

BUNDLE is one of CHECKPOINT, whose graphs are taken over: tracing them again would take most of the
time. Every second kill waits for the manifest, so that sealing and replacing are hit as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from laco_runtimes.bundle import open_bundle
from laco_runtimes.manifest import MANIFEST_NAME
from laco_runtimes.workfolder import BUNDLE_NAME
from tests.export.faults.forked import DONE, MAKERS, start

REPLACING_S = 0.05
"""Hashing, moving and removing bundles of a megabyte takes about as long."""


def ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG) != (0, 0)


def left_beside(out: Path) -> list[Path]:
    """Hidden folders with files of a bundle. (An empty one goes when it is a minute old.)"""
    hidden = (path for path in out.parent.iterdir() if path != out)
    return [path for path in hidden if any((path / BUNDLE_NAME).glob("*"))]


def wait_for_manifest(out: Path, child: int) -> bool:
    """Until the new bundle is sealed, still in its hidden folder; whether the child lives."""
    while not ended(child):
        if any(out.parent.glob(f".{out.name}.*/{BUNDLE_NAME}/{MANIFEST_NAME}")):
            return True
        time.sleep(0.0005)
    return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--moments", type=int, default=40)
    parser.add_argument("--maker", choices=MAKERS, default="export")
    given = parser.parse_args()
    draw = random.Random(0)
    out, log = given.folder / "place" / "engine", given.folder / "log.txt"

    def begin() -> int:
        return start(given.maker, out, given.checkpoint, given.bundle, log)

    def finish() -> float:
        started = time.monotonic()
        _, status = os.waitpid(begin(), 0)
        if status != DONE:
            raise RuntimeError(log.read_text())
        return time.monotonic() - started

    out.parent.mkdir(parents=True)
    whole_s = finish()
    seen, leftovers, missed = [], 0, 0
    for moment in range(given.moments):
        # The same model: the file itself tells the old bundle from the new one.
        before = (out / MANIFEST_NAME).stat().st_ino
        child = begin()
        if moment % 2 == 0:
            alive = wait_for_manifest(out, child)
            time.sleep(draw.uniform(0, REPLACING_S))
        else:
            time.sleep(draw.uniform(0, whole_s))
            alive = not ended(child)
        if alive:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        else:
            missed += 1
        open_bundle(out)
        seen.append("old" if (out / MANIFEST_NAME).stat().st_ino == before else "new")
        hidden = left_beside(out)
        leftovers += len(hidden)
        if len(hidden) > 1:
            raise RuntimeError(f"the next export did not remove {hidden}")
    finish()
    open_bundle(out)
    result = {
        "seen": seen,
        "missed": missed,
        "left_by_kills": leftovers,
        "left_in_the_end": [path.name for path in left_beside(out)],
    }
    shutil.rmtree(out.parent)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
