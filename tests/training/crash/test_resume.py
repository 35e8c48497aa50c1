"""A resumed run repeats the unbroken one, and is refused where it could not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.training.crash_safe import CrashSafeTrainer
from laco_deploy.training.snapshots import newest_snapshot, snapshots
from laco_runtimes.errors import ArgumentError, CheckpointError
from tests.training.crash.tiny_run import Pictures, digests, losses, tiny_trainer

# 44 samples are 11 steps of 2 x 2: with 14 steps the run crosses into a second epoch.
STEPS = 14


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(out: Path, stop: int | None = None, resume: bool = True, **changes: Any) -> Any:
    out.mkdir(exist_ok=True)
    trainer = tiny_trainer(out, **{"max_steps": STEPS, "save_steps": 4, **changes})
    if stop is None:
        trainer.train(resume)
        return trainer
    trainer.add_callback(StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume)
    return trainer


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CrashSafeTrainer]:
    out = tmp_path_factory.mktemp("unbroken")
    return out, run(out, resume=False)


def test_stopped_three_times_it_repeats_the_unbroken_run(
    tmp_path: Path, unbroken: tuple[Path, CrashSafeTrainer]
) -> None:
    """Before the first snapshot, in mid-epoch between two logs, and in the second epoch."""
    out, whole = unbroken
    for stop in (3, 9, 13):
        run(tmp_path, stop)
    last = run(tmp_path)
    assert digests(tmp_path) == digests(out)
    assert sorted(digests(out)) == list(range(1, STEPS + 1))
    assert losses(last) == losses(whole)
    for name in ("model", "optimizer", "rank-00000"):
        file = f"snapshots/step-{STEPS:08d}/{name}.safetensors"
        assert (tmp_path / file).read_bytes() == (out / file).read_bytes()


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, unbroken: tuple[Path, CrashSafeTrainer]
) -> None:
    """Killed after the last snapshot and before the closing lines of the log."""
    out, whole = unbroken
    shutil.copytree(out / "snapshots", tmp_path / "snapshots")
    trainer = run(tmp_path)
    assert not (tmp_path / "diary.jsonl").exists()
    assert losses(trainer) == losses(whole)
    assert trainer.state.global_step == STEPS


def test_workers_do_not_change_what_is_repeated(
    tmp_path: Path, unbroken: tuple[Path, CrashSafeTrainer]
) -> None:
    run(tmp_path, 6, dataloader_num_workers=1)
    run(tmp_path, 10, dataloader_num_workers=1)
    out, _ = unbroken
    known = digests(out)
    assert digests(tmp_path) == {step: known[step] for step in range(1, 11)}


def test_skipped_samples_are_not_read_again(tmp_path: Path) -> None:
    run(tmp_path, 9)

    class Counting(Pictures):
        read = 0

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            self.read += 1
            return super().__getitem__(index)

    dataset = Counting()
    run(tmp_path, 10, dataset=dataset)
    # Steps 9 and 10, and one batch ahead.
    assert dataset.read == (2 * 2 + 1) * 2


def test_a_snapshot_holds_safetensors_and_json_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was pickled")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(f"pickle.{name}", refuse)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse)
    run(tmp_path, 5)
    trainer = run(tmp_path, 6)
    trainer.save_model(str(tmp_path / "model"))
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"]
    assert {file.suffix for file in files} == {".json", ".jsonl", ".safetensors"}
    assert len(files) > 10


def test_the_model_of_a_snapshot_loads_by_itself(unbroken: tuple[Path, CrashSafeTrainer]) -> None:
    out, trainer = unbroken
    snapshot = newest_snapshot(out / "snapshots")
    assert snapshot is not None
    model = LacoForConditionalGeneration.from_pretrained(snapshot.path)
    for (name, left), right in zip(
        model.named_parameters(), trainer.model.parameters(), strict=True
    ):
        assert torch.equal(left, right), name


def test_a_damaged_snapshot_costs_steps_and_nothing_else(
    tmp_path: Path, unbroken: tuple[Path, CrashSafeTrainer]
) -> None:
    run(tmp_path, 9)
    file = tmp_path / "snapshots/step-00000008/optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 16
    file.write_bytes(data)
    said: list[str] = []
    run(tmp_path, 10, report=said.append)
    assert "optimizer.safetensors has changed" in said[0]
    assert "step 4 is used" in said[0]
    out, _ = unbroken
    known = digests(out)
    assert digests(tmp_path) == {step: known[step] for step in range(1, 11)}
    assert [snapshot.step for snapshot in snapshots(tmp_path / "snapshots")] == [4, 8]


CHANGES: dict[str, dict[str, Any]] = {
    "seed was 42 and is 1": {"seed": 1},
    "steps was 14 and is 20": {"max_steps": 20},
    "micro_batch was 2 and is 4": {"per_device_train_batch_size": 4},
    "accumulation was 2 and is 4": {"gradient_accumulation_steps": 4},
    "samples was 44 and is 43": {"dataset": Pictures(43)},
    "data was 'abc' and is 'abd'": {"settings": {"data": "abd", "rates": [1e-3, 1e-5]}},
    "rates was .0.001, 1e-05. and is None": {"settings": {"data": "abc"}},
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_run_with_other_settings_is_refused(settled: Path, message: str) -> None:
    changes = {"settings": SETTINGS, **CHANGES[message]}
    with pytest.raises(CheckpointError, match=message):
        run(settled, **changes)


def test_a_setting_may_be_allowed_to_differ(settled: Path) -> None:
    changed = {**SETTINGS, "data": "abd"}
    run(settled, 5, settings=changed, may_differ={"data"})


SETTINGS = {"data": "abc", "rates": (1e-3, 1e-5)}


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("settled")
    run(out, 5, settings=SETTINGS)
    return out


def test_another_model_is_refused(settled: Path) -> None:
    trainer = tiny_trainer(settled, max_steps=STEPS, settings=SETTINGS)
    trainer.model.model.projector.linear_1 = torch.nn.Linear(32, 24, bias=False)
    with pytest.raises(CheckpointError, match=r"another model: model\.projector\.linear_1\.bias"):
        trainer.train(True)


def test_another_number_of_threads_is_said_aloud(settled: Path) -> None:
    said: list[str] = []
    environment = settled / "snapshots/step-00000004/settings.json"
    text = environment.read_text()
    trainer = tiny_trainer(settled, max_steps=STEPS, settings=SETTINGS, report=said.append)
    snapshot = newest_snapshot(settled / "snapshots")
    assert snapshot is not None
    values = json.loads(text)
    values["environment"]["threads"] = 64
    environment.write_text(json.dumps(values))
    try:
        trainer._check_settings(snapshot, STEPS)
    finally:
        environment.write_text(text)
    assert said[0].startswith("going on, but not to the bit: threads was 64 and is ")


def test_snapshots_of_an_earlier_run_are_not_mixed_into_a_new_one(settled: Path) -> None:
    with pytest.raises(CheckpointError, match="snapshots of an earlier run"):
        run(settled, resume=False, settings=SETTINGS)


def test_a_path_to_resume_from_is_refused(settled: Path) -> None:
    with pytest.raises(ArgumentError, match="newest snapshot"):
        tiny_trainer(settled).train(str(settled / "snapshots/step-00000004"))


@pytest.mark.parametrize(
    "option",
    [{"ignore_data_skip": True}, {"save_only_model": True}, {"auto_find_batch_size": True}],
)
def test_options_that_break_the_promise_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(option))):
        tiny_trainer(tmp_path, **option)
