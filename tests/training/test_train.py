"""A whole training run with the `micro` recipe: it learns, repeats, and leaves a usable folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from laco_deploy.model.checkpoint import load_checkpoint
from laco_deploy.training.dataset import read_samples
from laco_deploy.training.evaluation import answer, evaluate
from laco_deploy.training.recipes import RECIPES
from laco_deploy.training.train import PARITY_FOLDER, TrainResult, train
from laco_runtimes.errors import ArgumentError, CheckpointError
from laco_runtimes.prompt import load_tokenizer

MICRO = RECIPES["micro"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "micro"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, data: Path) -> TrainResult:
    out = tmp_path_factory.mktemp("run") / "ckpt"
    return train(MICRO, out=out, data=data, workers=1, command="laco train --recipe micro")


def test_micro_recipe_lowers_the_loss_by_half(result: TrainResult) -> None:
    losses = [loss for _, loss in result.losses]
    assert losses[-1] < 0.5 * losses[0]


def test_checkpoint_loads_and_answers(result: TrainResult, data: Path) -> None:
    loaded = load_checkpoint(result.path)
    samples = read_samples(data / "test.json")
    tokenizer = load_tokenizer(loaded.tokenizer_path)
    replies = answer(loaded.model, samples[:4], tokenizer, loaded.template, loaded.preprocessing)
    assert len(replies) == 4
    assert all(isinstance(reply, str) for reply in replies)


def test_recorded_scores_are_those_of_the_saved_weights(result: TrainResult, data: Path) -> None:
    loaded = load_checkpoint(result.path)
    scores = evaluate(
        loaded.model,
        read_samples(data / "test.json"),
        load_tokenizer(loaded.tokenizer_path),
        loaded.template,
        loaded.preprocessing,
    )
    assert tuple(scores) == result.scores
    assert sum(score.total for score in scores) == MICRO.counts["test"]


def test_record_and_card_state_the_run(result: TrainResult) -> None:
    record = json.loads((result.path / "training.json").read_text())
    assert record["command"] == "laco train --recipe micro"
    assert record["seed"] == 0
    assert record["recipe"]["steps"] == MICRO.steps
    card = (result.path / "README.md").read_text()
    assert "laco train --recipe micro" in card
    assert "digits, reading" in card


def test_test_pictures_of_every_task_travel_with_the_checkpoint(result: TrainResult) -> None:
    samples = read_samples(result.path / PARITY_FOLDER / "samples.json")
    assert len(samples) >= 16
    assert all(sample.image.is_file() for sample in samples)
    assert {sample.tasks[0] for sample in samples} == {score.task for score in result.scores}


def test_same_seed_gives_the_same_weights_and_another_seed_others(
    tmp_path: Path, data: Path
) -> None:
    short = replace(MICRO, counts={**MICRO.counts, "test": 16})
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = train(
            short, out=tmp_path / name, data=tmp_path / f"data{seed}", seed=seed, steps=3, workers=1
        )
        weights.append(load_file(run.path / "model.safetensors"))
    first, again, other = weights
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_foreign_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="left alone"):
        train(MICRO, out=tmp_path, data=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="0 training steps"):
        train(MICRO, out=tmp_path / "out", data=tmp_path / "data", steps=0)
