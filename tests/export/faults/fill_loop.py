"""Make a bundle over an older one on a disk that is full after ever more bytes.

A program of its own (see forked.py), in a mount name space of its own, where it may mount a tmpfs
without being root. Prints one JSON object.

    unshare -Urm python -m tests.export.faults.fill_loop FOLDER CHECKPOINT BUNDLE --step 16384
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

from laco_runtimes.bundle import open_bundle
from tests.export.faults.forked import DISK_FULL, DONE, MAKERS, start

DISK_BYTES = 64_000_000


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def fill(ballast: Path, left: int) -> None:
    """Take all of the disk but `left` bytes."""
    ballast.unlink(missing_ok=True)
    size = free_bytes(ballast.parent) - left
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--maker", choices=MAKERS, default="export")
    parser.add_argument("--step", type=int, help="bytes; or else --only")
    parser.add_argument("--only", type=float, nargs="*", default=(), help="parts of what it takes")
    given = parser.parse_args()
    disk, log = given.folder / "disk", given.folder / "log.txt"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], check=True)
    out, ballast = disk / "engine", disk / "ballast"

    def export() -> int:
        child = start(given.maker, out, given.checkpoint, given.bundle, log)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    before = free_bytes(disk)
    if export() != DONE:
        raise RuntimeError(log.read_text())
    takes = before - free_bytes(disk)
    step = given.step or takes
    points = [int(part * takes) for part in given.only] or list(range(0, 3 * takes, step))
    old = (out / "laco.json").read_bytes()

    failed = []
    for left in points:
        fill(ballast, left)
        code = export()
        names = {path.name for path in disk.iterdir()} - {ballast.name}
        open_bundle(out)
        if code == DONE:
            break
        said = log.read_text()
        if code != DISK_FULL or "no space left" not in said or "Free" not in said:
            raise RuntimeError(f"with {left} bytes left the export ended with {code}: {said}")
        if names != {"engine"} or (out / "laco.json").read_bytes() != old:
            raise RuntimeError(f"with {left} bytes left: {names}")
        failed.append(left)
    print(json.dumps({"takes": takes, "failed_at": failed, "done_in_the_end": code == DONE}))


if __name__ == "__main__":
    main()
