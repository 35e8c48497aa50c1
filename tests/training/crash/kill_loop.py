"""Train, kill with SIGKILL at random moments, resume, and compare each step with an unbroken run.

A program of its own: it imports torch once and forks a child for each run, which a process that
has trained before (pytest) must not do. Prints one JSON object.

    OMP_NUM_THREADS=1 python -m tests.training.crash.kill_loop OUT --moments 40 --steps 30
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from laco_deploy.training.snapshots import snapshots
from tests.training.crash.tiny_run import digests, read_diary, tiny_trainer

SAVE_EVERY = 5


def train(out: Path, total: int) -> int:
    """Fork a child that goes on to the end, and give its process id."""
    out.mkdir(parents=True, exist_ok=True)
    if child := os.fork():
        return child
    try:
        with (out / "output.txt").open("a") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
        tiny_trainer(out, max_steps=total, save_steps=SAVE_EVERY, log_level="error").train(True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait_for_steps(out: Path, child: int, seen: int, wanted: int) -> int:
    """Wait until the diary has `wanted` lines more than `seen`; the first of their steps."""
    while True:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            raise RuntimeError(f"the run in {out} ended before it was killed")
        lines = read_diary(out)[seen:] if (out / "diary.jsonl").exists() else []
        if len(lines) >= wanted:
            return int(lines[0]["step"])
        time.sleep(0.005)


def is_saving(out: Path) -> bool:
    return any((out / "snapshots").glob(".step-*"))


def kill_at_random(out: Path, child: int, draw: random.Random, *, in_saving: bool) -> bool:
    """Kill within a save, or at any moment of a step; whether a save was cut off."""
    if in_saving:
        while not is_saving(out):
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.08))
    else:
        time.sleep(draw.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return is_saving(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--moments", type=int, default=40)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(given.seed)
    broken, unbroken = given.out / "broken", given.out / "unbroken"
    total = (given.moments + 1) * (given.steps + 3 * SAVE_EVERY)
    started = time.monotonic()

    resumed_at, cut_off = [], 0
    for moment in range(given.moments):
        seen = len(read_diary(broken)) if (broken / "diary.jsonl").exists() else 0
        child = train(broken, total)
        resumed_at.append(wait_for_steps(broken, child, seen, given.steps))
        # The steps so far may end in a save: spread over the whole time between two.
        wait_for_steps(broken, child, seen, given.steps + draw.randrange(SAVE_EVERY))
        cut_off += kill_at_random(broken, child, draw, in_saving=moment % 2 == 1)
    reached = max(digests(broken))
    seen = len(read_diary(broken))
    child = train(broken, total)
    resumed_at.append(wait_for_steps(broken, child, seen, given.steps))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    child = train(unbroken, total)
    wait_for_steps(unbroken, child, 0, max(digests(broken)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    ours, truth = digests(broken), digests(unbroken)
    result = {
        "moments": given.moments,
        "resumed_at": resumed_at,
        "steps_of_all_runs": len(read_diary(broken)),
        "steps_compared": len(ours),
        "differing_steps": [step for step, digest in ours.items() if truth[step] != digest],
        "missing_steps": sorted(set(range(1, reached + 1)) - set(ours)),
        "cut_off_in_saving": cut_off,
        "snapshots_left": [snapshot.step for snapshot in snapshots(broken / "snapshots")],
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
