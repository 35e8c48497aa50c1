"""A stage from checkpoint to checkpoint, stages in a row, and going on after a stop."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from laco_deploy.cli import run
from laco_deploy.model.checkpoint import load_checkpoint
from laco_deploy.training import stage_run
from laco_deploy.training.run_files import read_lines
from laco_deploy.training.stage import load_stage
from laco_deploy.training.stage_run import StageJob, run_stage
from laco_deploy.training.stage_trainer import StageTrainer
from laco_runtimes.errors import CheckpointError, ConfigError, DataError
from tests.training.stages.tiny_stages import SHORT, short_stage

RATES = {"learning_rates": {"tower": 1e-3, "merger": 1e-3, "projector": 1e-3}}


class AskToStop(TrainerCallback):
    """Sends this process a signal at the end of a step, as a user or a scheduler would."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Weights of every run as it began to train."""
    starts: list[dict[str, Tensor]] = []

    class Recording(StageTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            starts.append({name: w.clone() for name, w in self.gather_weights().items()})
            return super().train(*args, **kwargs)

    monkeypatch.setattr(stage_run, "StageTrainer", Recording)
    return starts


def state(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).model.state_dict()


def settings_of(path: Path) -> dict[str, Any]:
    """`config.json` without the precision of the parts, which transformers notes as it loads."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    for part in ("vision_config", "text_config"):
        config[part].pop("dtype", None)
    return config


def losses(record: Path) -> list[float]:
    return [entry["loss"] for entry in read_lines(record / "log.jsonl") if "loss" in entry]


def test_the_merger_is_bit_equal_across_a_stage_boundary(
    checkpoint: Path, data: Path, tmp_path: Path, trainers: list[dict[str, Tensor]]
) -> None:
    """H3: saving only what is named a projector would lose it, and stage 1.5 begin with noise."""
    first = StageJob(
        stage=short_stage("stage1", warmup_ratio=0, max_steps=2),
        checkpoint=checkpoint,
        data=data,
        out=tmp_path / "one",
    )
    assert run_stage(first).finished
    second = replace(
        first,
        stage=short_stage("stage1.5", max_steps=1),
        checkpoint=first.out,
        out=tmp_path / "two",
    )
    assert run_stage(second).finished
    start, written, begun = state(checkpoint), state(tmp_path / "one"), trainers[1]
    for name, weight in start.items():
        learnt = ".mergers." in name or ".projector." in name
        assert torch.equal(written[name], weight) != learnt, name
    shared = [name for name in written if name in begun]
    assert {name for name in start if name not in shared} <= {"lm_head.weight"}  # tied
    for name in shared:
        assert torch.equal(begun[name], written[name]), name
    assert load_checkpoint(tmp_path / "two").config.image_mode == "anyres"


def test_a_finished_stage_leaves_a_whole_checkpoint_with_its_record(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    job = StageJob(
        stage=short_stage(max_steps=2, evaluate_limit=3, sample_every=2, sample_count=2),
        checkpoint=checkpoint,
        data=data,
        out=tmp_path / "out",
        eval_data=data,
        tensorboard=True,
    )
    result = run_stage(job)
    assert (result.finished, result.step, result.steps, result.broken) == (True, 2, 2, 0)
    assert result.scores["eval_questions"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    record = tmp_path / "out" / "training"
    assert load_stage(record / "stage.yaml") == job.stage
    entries = read_lines(record / "log.jsonl")
    assert [e["step"] for e in entries if "loss" in e] == [1, 2]
    assert entries[1]["learning_rate"] == entries[1]["learning_rate/merger"]
    assert entries[1]["learning_rate/tower"] == pytest.approx(entries[1]["learning_rate"] / 5)
    samples = read_lines(record / "samples.jsonl")
    assert {(s["step"], s["number"]) for s in samples} == {(2, 0), (2, 8)}
    assert all(s["reference"].startswith("It is") for s in samples)
    for name in ("loss.png", "learning_rates.png"):
        assert (record / name).read_bytes().startswith(b"\x89PNG")
    assert any((record / "tensorboard").iterdir())
    config, before = (settings_of(path) for path in (tmp_path / "out", checkpoint))
    changed = {name for name in {*config, *before} if config.get(name) != before.get(name)}
    assert changed == {"image_mode", "image_newline"}
    again = run_stage(replace(job, resume=True))
    assert again == replace(result, scores=again.scores)
    assert again.scores == pytest.approx(result.scores)
    with pytest.raises(CheckpointError, match="trained with other settings"):
        run_stage(replace(job, resume=True, stage=short_stage(max_steps=2, max_length=999)))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)]
)
def test_a_stop_finishes_the_step_and_a_resumed_run_ends_as_an_unbroken_one(
    number: int, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = StageJob(
        stage=short_stage(max_steps=4, save_every=3, **RATES),
        checkpoint=checkpoint,
        data=data,
        out=tmp_path / "unbroken",
    )
    run_stage(job)
    broken_off = replace(job, out=tmp_path / "stopped")
    stop = AskToStop(2, number)

    class Stopped(StageTrainer):
        def __init__(self, *args: Any, callbacks: Any, **kwargs: Any) -> None:
            super().__init__(*args, callbacks=[*callbacks, stop], **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stage_run, "StageTrainer", Stopped)
        before = signal.getsignal(number)
        result = run_stage(broken_off)
        assert signal.getsignal(number) is before
    assert (result.finished, result.step, result.steps) == (False, 2, 4)
    assert not broken_off.out.exists()
    assert len(losses(tmp_path / "stopped.run")) == 2
    with pytest.raises(CheckpointError, match="Add --resume"):
        run_stage(broken_off)
    with pytest.raises(CheckpointError, match="max_length"):
        run_stage(replace(broken_off, resume=True, stage=short_stage(max_length=999, **RATES)))
    assert run_stage(replace(broken_off, resume=True)).finished
    one, other = state(tmp_path / "unbroken"), state(tmp_path / "stopped")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(broken_off.out / "training") == losses(job.out / "training")


def test_data_that_cannot_be_read_leave_nothing_behind(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    job = StageJob(
        stage=short_stage(), checkpoint=checkpoint, data=tmp_path / "no.json", out=tmp_path / "out"
    )
    with pytest.raises(DataError):
        run_stage(job)
    with pytest.raises(DataError):
        run_stage(replace(job, data=data, eval_data=tmp_path / "no.json"))
    with pytest.raises(ConfigError, match="nothing to shard"):
        run_stage(replace(job, data=data, stage=short_stage(fsdp=True)))
    assert list(tmp_path.iterdir()) == []


def test_stages_run_in_a_row_and_go_on_where_they_were(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = data
    chain = tmp_path / "chain.yaml"
    chain.write_text(
        json.dumps(
            {
                "set": {**SHORT, "max_steps": 1},
                "stages": [
                    {"stage": "stage1", "data": str(data), "set": {"evaluate_limit": 1}},
                    {"stage": "stage2-si", "data": str(data), "eval_data": str(held_out)},
                ],
            }
        )
    )
    words = ["train", "--chain", str(chain), "--ckpt", str(checkpoint), "--out"]
    out = tmp_path / "row"
    assert run([*words, str(out), "--set", "evaluate_limit=2"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["1-stage1", "2-stage2-si"]
    assert load_stage(out / "1-stage1" / "training" / "stage.yaml").evaluate_limit == 2
    first = (out / "1-stage1" / "model.safetensors").stat().st_mtime_ns
    assert run([*words, str(out)]) == 1  # it would be trained over
    assert "--resume" in capsys.readouterr().err
    assert run([*words, str(out), "--set", "evaluate_limit=2", "--resume"]) == 0
    assert "nothing is left to do" in capsys.readouterr().err
    assert (out / "1-stage1" / "model.safetensors").stat().st_mtime_ns == first


def test_a_stage_from_the_command_line(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--stage", "stage1", "--ckpt", str(checkpoint), "--data", str(data)]
    words += ["--out", str(tmp_path / "out"), "--micro-batch", "2", "--max-steps", "1", "--set"]
    words += ["learning_rates.merger=1e-4", "precision=fp32", "global_batch=4", "workers=0"]
    assert run(words) == 0
    stage = load_stage(tmp_path / "out" / "training" / "stage.yaml")
    assert stage.learning_rates == {"projector": 1e-3, "merger": 1e-4}
    assert (stage.micro_batch, stage.max_steps, stage.style) == (2, 1, "plain")
    assert "16 samples, fp32, projector 0.001, merger 0.0001" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "o"], "Give one of --stage"),
        (["--stage", "stage1", "--recipe", "tiny", "--out", "o"], "Give one of --stage"),
        (["--stage", "stage1", "--out", "o", "--data", "d"], "Give --ckpt"),
        (["--stage", "stage1", "--out", "o", "--ckpt", "c"], "1 stages need 1 data sets"),
        (["--stages", "stage1", "stage1.5", "--data", "a", "--ckpt", "c", "--out", "o"], "2 data"),
        (["--stage", "stage9", "--data", "a", "--ckpt", "c", "--out", "o"], "Did you mean"),
        (["--stage", "stage1", "--data", "a", "--ckpt", "c", "--out", "o", "--set", "x=1"], "'x'"),
        (["--recipe", "tiny", "--out", "o", "--set", "x=1"], "Leave the rest out"),
        (["--stage", "stage1", "--out", "o", "--steps", "3"], "--max-steps"),
    ],
)
def test_a_command_that_is_not_clear_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_bf16_on_a_processor_without_it_is_said_to_be_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from laco_deploy.training import precision

    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    assert precision.resolve_precision("auto") == ("fp32", None)
    assert precision.resolve_precision("fp32") == ("fp32", None)
    chosen, warning = precision.resolve_precision("bf16")
    assert chosen == "bf16"
    assert "--set precision=fp32" in str(warning)
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: True)
    assert precision.resolve_precision("auto") == ("bf16", None)
    assert precision.resolve_precision("bf16") == ("bf16", None)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    stage = short_stage(global_batch=6, micro_batch=2)
    assert stage.accumulation(1) == 3
    with pytest.raises(ConfigError, match="2 processes x micro_batch 2"):
        stage.accumulation(2)
