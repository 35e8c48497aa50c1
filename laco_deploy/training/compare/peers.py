"""Processes that share every batch.

For a model so small they beat threads that share every matrix: on 2 cores, two threads took almost
twice the processor time of one for the same step, two processes hardly more. They meet once a step,
to add their gradients.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Peers:
    """This process among those that train one model."""

    rank: int = 0
    size: int = 1

    def share(self, batch: Sequence[int]) -> Sequence[int]:
        """This process's part of a batch."""
        return batch[self.rank :: self.size]

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace every tensor by its sum over the processes, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


@contextmanager
def gather(size: int, help_out: Callable[..., None], *arguments: Any) -> Iterator[Peers]:
    """Be rank 0, beside `size - 1` fresh processes that run `help_out(peers, *arguments)`.

    They have one thread each, and end with this process whatever ends it.
    """
    if size == 1:
        yield Peers()
        return
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        helpers = [
            context.Process(
                target=_run,
                args=(Peers(rank, size), meeting, os.getpid(), help_out, arguments),
                daemon=True,
            )
            for rank in range(1, size)
        ]
        for helper in helpers:
            helper.start()
        peers = Peers(0, size)
        try:
            _join(peers, meeting)
            yield peers
            for helper in helpers:
                helper.join()
        finally:
            for helper in helpers:
                helper.terminate()
            if dist.is_initialized():
                dist.destroy_process_group()


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended, even if that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _join(peers: Peers, meeting: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=peers.rank, world_size=peers.size
    )


def _run(
    peers: Peers,
    meeting: Path,
    parent: int,
    help_out: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    end_with(parent)
    torch.set_num_threads(1)
    _join(peers, meeting)
    help_out(peers, *arguments)
    dist.destroy_process_group()


__all__ = ["Peers", "end_with", "gather"]
