"""Batches, the schedule, snapshots, and processes that share a batch."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from laco_deploy.training.compare.fit import Schedule, Snapshots, fit
from laco_deploy.training.compare.insertion import insert
from laco_deploy.training.compare.pictures import batch_order
from laco_deploy.training.compare.pretrain import RECORD, Workshop, pretrain
from laco_deploy.training.compare.settings import Budget
from laco_deploy.training.dataset import ChatDataset, Collator, read_samples
from laco_deploy.training.parts import Part
from laco_deploy.training.progress import Progress
from laco_runtimes.errors import CheckpointError

RATES: dict[Part, float] = {"tower": 1e-3, "projector": 1e-3, "language_model": 1e-3}


class Stop(Exception):
    pass


def test_batches_are_those_of_the_recipe_for_any_number_of_visual_tokens(
    workshop: Workshop, root: Path
) -> None:
    checkpoint = workshop.checkpoint
    samples = read_samples(root / "data" / "train.json")[:6]
    pad = int(checkpoint.config.text.pad_token_id or 0)
    for tokens in (64, 16):
        dataset = ChatDataset(
            samples, workshop.tokenizer, checkpoint.template, checkpoint.preprocessing, tokens
        )
        want = Collator(checkpoint.preprocessing, pad)([dataset[i] for i in range(6)])
        got = workshop.pictures.batch(range(6), tokens)
        for key, tensor in got.items():
            assert torch.equal(tensor, want[key]), key
        counted = sum(workshop.pictures.answer_tokens[index] for index in range(6))
        assert counted == int((want["labels"] != -100).sum())


def test_a_batch_without_mask_has_the_loss_of_one_with_it(workshop: Workshop) -> None:
    model = workshop.checkpoint.model
    batch = workshop.pictures.batch(range(5), model.config.tokens_per_tile)
    mask = (batch["input_ids"] != int(model.config.text.pad_token_id)).long()
    assert int((mask == 0).sum()) > 0
    with torch.no_grad():
        alone, masked = model(**batch).loss, model(**batch, attention_mask=mask).loss
    assert float(alone) == pytest.approx(float(masked), rel=1e-5)


def test_an_epoch_shows_every_sample_once() -> None:
    order = batch_order(1000, batch_size=20, steps=100, seed=3)
    for epoch in (order[:50], order[50:]):
        assert Counter(index for batch in epoch for index in batch) == Counter(range(1000))
    assert order[:50] != order[50:]
    assert batch_order(1000, batch_size=20, steps=30, seed=3) == order[:30]
    assert batch_order(1000, batch_size=20, steps=30, seed=4) != order[:30]
    assert [len(batch) for batch in batch_order(7, batch_size=4, steps=5, seed=0)] == [4] * 5


def test_schedule_warms_up_and_ends_near_its_floor() -> None:
    schedule = Schedule(steps=1000, warmup_steps=30, floor_share=0.01)
    assert schedule.factor(0) == pytest.approx(1 / 30)
    assert schedule.factor(29) == schedule.factor(30) == 1.0
    assert schedule.factor(515) == pytest.approx(0.505)
    assert schedule.factor(999) == pytest.approx(0.01, abs=1e-4)
    factors = [schedule.factor(step) for step in range(30, 1000)]
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("stop", [20, 33, 40])
def test_a_fit_goes_on_from_its_snapshot_to_the_bit(
    workshop: Workshop, tmp_path: Path, stop: int
) -> None:
    steps, size = 44, 4
    batches = batch_order(len(workshop.pictures), batch_size=size, steps=steps, seed=0)
    schedule = Schedule(steps=steps, warmup_steps=2, floor_share=0.0)
    snapshots = Snapshots(tmp_path / "fit.safetensors", "abc", every_seconds=0.0)

    def run(until: int, kept: Snapshots | None) -> tuple[list[torch.Tensor], object]:
        model = insert(workshop.checkpoint.model, (), 0)

        def interrupt(step: int, _: int) -> None:
            if step == until:
                raise Stop

        state = fit(
            model,
            workshop.pictures,
            batches,
            learning_rates=RATES,
            schedule=schedule,
            weight_decay=0.05,
            snapshots=kept,
            progress=interrupt,
        )
        return [parameter.detach() for parameter in model.parameters()], state.losses

    whole = run(-1, None)
    with pytest.raises(Stop):
        run(stop, snapshots)
    assert snapshots.path.exists()
    assert load_file(snapshots.path)  # whole, though the run stopped
    resumed = run(-1, snapshots)
    assert resumed[1] == whole[1]
    assert all(map(torch.equal, resumed[0], whole[0]))


def test_a_snapshot_of_other_settings_or_half_a_snapshot_is_not_read(
    workshop: Workshop, tmp_path: Path
) -> None:
    model = insert(workshop.checkpoint.model, (), 0)
    optimizer = torch.optim.AdamW(model.parameters())
    path = tmp_path / "fit.safetensors"
    model(**workshop.pictures.batch([0, 1], model.config.tokens_per_tile)).loss.backward()
    optimizer.step()
    state = fit(
        model,
        workshop.pictures,
        [[0]],
        learning_rates=RATES,
        schedule=Schedule(steps=1, warmup_steps=1, floor_share=0.0),
    )
    Snapshots(path, "abc").save(model, optimizer, state)
    assert Snapshots(path, "abc").load(model, optimizer).step == 1
    assert Snapshots(path, "def").load(model, optimizer).step == 0
    path.write_bytes(path.read_bytes()[:1000])
    assert Snapshots(path, "abc").load(model, optimizer).step == 0


def test_two_processes_train_the_model_that_one_trains(
    root: Path, budget: Budget, tmp_path: Path
) -> None:
    shutil.copytree(root / "data", tmp_path / "data")
    for pixels in root.glob("*.npy"):
        shutil.copy(pixels, tmp_path)
    pretrain(tmp_path, budget, workers=2, progress=Progress())
    one, two = (load_file(f / "pretrained" / "model.safetensors") for f in (root, tmp_path))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert (tmp_path / "pretrained" / RECORD).is_file()


def test_a_model_of_other_settings_is_refused(root: Path, budget: Budget) -> None:
    other = replace(budget, recipe=replace(budget.recipe, learning_rate=1e-4))
    with pytest.raises(CheckpointError, match="other settings"):
        pretrain(root, other, workers=1, progress=Progress())
