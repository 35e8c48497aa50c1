"""Two processes train, stop and resume, with DDP and with FSDP2 (gloo, CPU).

A program of its own that forks the processes, so that torch is imported once.

    OMP_NUM_THREADS=1 python -m tests.training.crash.ranks OUT ddp fsdp2
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch import distributed
from transformers import TrainerCallback

from tests.training.crash.tiny_run import Pictures, TinyTrainer, tiny_trainer

PROCESSES = 2
STEPS, STOP, SAVE_EVERY = 16, 14, 4  # 11 steps are an epoch: it stops and resumes in the second
SHARDING: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "transformer_layer_cls_to_wrap": ["Aimv2EncoderLayer", "Qwen2DecoderLayer"],
        },
    },
}


class OnCpu(TinyTrainer):
    """accelerate knows FSDP on accelerators only; torch has it for the CPU too."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True


class StopAt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STOP:
            raise KeyboardInterrupt


def run(out: Path, resume: bool, stop: bool, sharding: dict[str, Any]) -> None:
    trainer = tiny_trainer(
        out,
        kind=OnCpu,
        diary=f"diary-{os.environ['RANK']}.jsonl",
        max_steps=STEPS,
        save_steps=SAVE_EVERY,
        per_device_train_batch_size=1,
        # A tower sharded over all processes must be called by all of them in every micro batch.
        dataset=Pictures(texts=not sharding),
        log_level="error",
        **sharding,
    )
    if stop:
        trainer.add_callback(StopAt())
        try:
            trainer.train(resume)
        except KeyboardInterrupt:
            return
        raise RuntimeError("the run was not stopped")
    trainer.train(resume)
    trainer.save_model(str(out / "model"))


def process(out: Path, rank: int, port: int, sharding: dict[str, Any]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    run(out / "unbroken", resume=False, stop=False, sharding=sharding)
    run(out / "broken", resume=True, stop=True, sharding=sharding)
    run(out / "broken", resume=True, stop=False, sharding=sharding)
    distributed.destroy_process_group()


def fork_processes(out: Path, sharding: dict[str, Any]) -> None:
    for name in ("unbroken", "broken"):
        (out / name).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(PROCESSES):
        if child := os.fork():
            children.append(child)
            continue
        try:
            process(out, rank, port, sharding)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ends = [os.waitpid(child, 0)[1] for child in children]
    if any(ends):
        raise SystemExit(f"the processes ended with {ends}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        fork_processes(Path(sys.argv[1]) / name, SHARDING[name])
