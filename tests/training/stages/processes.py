"""Several training processes on this machine, joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def run_together(count: int, work: Callable[[int], None], folder: Path) -> None:
    """Call `work(rank)` in `count` forks of this process, set up as torchrun would.

    Forks, because importing torch and transformers anew takes longer than the training.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_child, args=(rank, count, port, work, folder / f"rank{rank}.txt"))
        for rank in range(count)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=240)
    alive = [child for child in children if child.is_alive()]
    for child in alive:
        child.kill()
    said = "\n".join(path.read_text() for path in sorted(folder.glob("rank*.txt")))
    assert not alive, f"a process hangs\n{said}"
    assert all(child.exitcode == 0 for child in children), said


def _child(rank: int, count: int, port: int, work: Callable[[int], None], said: Path) -> None:
    from accelerate import PartialState

    torch.set_num_threads(1)  # OpenMP does not survive a fork
    PartialState._reset_state()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    status = 1
    try:
        work(rank)
        status = 0
    except BaseException:
        said.write_text(f"process {rank}:\n{traceback.format_exc()}")
    finally:
        # Not sys.exit: what pytest registered for its own end must not run here as well.
        os._exit(status)
