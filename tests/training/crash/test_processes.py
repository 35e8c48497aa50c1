"""Two processes, with DDP and with FSDP2; see ranks.py for what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laco_deploy.model import LacoForConditionalGeneration
from laco_runtimes.errors import CheckpointError
from tests.training.crash.ranks import PROCESSES, STEPS
from tests.training.crash.run_program import run_program
from tests.training.crash.tiny_run import Pictures, digests, tiny_trainer

pytestmark = pytest.mark.full

KINDS = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    run_program("ranks", str(out), *KINDS)
    return out


@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_of_two_processes_repeats_the_unbroken_one(
    folder: Path, kind: str, rank: int
) -> None:
    diary = f"diary-{rank}.jsonl"
    unbroken = digests(folder / kind / "unbroken", diary)
    assert sorted(unbroken) == list(range(1, STEPS + 1))
    assert digests(folder / kind / "broken", diary) == unbroken
    for name in ("model/model", f"snapshots/step-{STEPS:08d}/optimizer"):
        files = [folder / kind / run / f"{name}.safetensors" for run in ("broken", "unbroken")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_what_many_processes_saved_loads_in_one(folder: Path, kind: str) -> None:
    saved = folder / kind / "unbroken" / "model"
    model = LacoForConditionalGeneration.from_pretrained(saved)
    weights = load_file(saved / "model.safetensors")
    own = dict(model.named_parameters())
    assert set(own) == set(weights)
    assert all(torch.equal(own[name], weights[name]) for name in own)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on_where_two_were_only_if_allowed(folder: Path, kind: str) -> None:
    """With twice the accumulation the batch of a step stays the same."""
    out = folder / kind / "unbroken"
    said: list[str] = []
    changes: dict[str, Any] = {
        "max_steps": STEPS + 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "dataset": Pictures(texts=kind == "ddp"),
        "report": said.append,
    }
    with pytest.raises(CheckpointError, match="processes was 2 and is 1"):
        tiny_trainer(out, **changes).train(True)
    trainer = tiny_trainer(out, may_differ={"processes", "accumulation", "steps"}, **changes)
    before = load_file(out / "snapshots" / f"step-{STEPS:08d}" / "optimizer.safetensors")
    trainer.train(True)
    assert trainer.state.global_step == STEPS + 1
    assert said[0].startswith("going on, but not to the bit: ")
    assert "processes was 2 and is 1" in said[0]
    optimizer: Any = trainer.optimizer
    counts = {int(state["step"]) for state in optimizer.state.values()}
    assert counts == {int(before[name]) + 1 for name in before if name.endswith("/step")}
