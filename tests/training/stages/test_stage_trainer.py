"""What learns in a stage, how fast and from what, on the real model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from laco_deploy.model import LacoForConditionalGeneration, LacoProcessor
from laco_deploy.model.checkpoint import load_checkpoint
from laco_deploy.training.broken_log import BrokenLog
from laco_deploy.training.corpus import Broken, Collator, Corpus, Encoded, TrainingSet, read_mixture
from laco_deploy.training.pictures import WithPicture
from laco_deploy.training.run_files import read_lines
from laco_deploy.training.stage import STAGE_NAMES, Stage, load_stage
from laco_deploy.training.stage_run import chat_options, prepare_model
from laco_deploy.training.stage_trainer import StageTrainer, training_arguments
from laco_runtimes.errors import DataError
from tests.model.tower_samples import KINDS, laco_config, randomize
from tests.training.stages.tiny_stages import short_stage, write_data


class Samples:
    """Encoded samples as a data set; broken ones stand in it as they are."""

    def __init__(self, items: Sequence[Encoded | Broken]) -> None:
        self.items = items

    @property
    def lengths(self) -> list[int]:
        return [len(i.ids) if isinstance(i, Encoded) else 1 for i in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Encoded | Broken:
        return self.items[index]


def make_trainer(
    model: LacoForConditionalGeneration,
    stage: Stage,
    items: Sequence[Encoded | Broken],
    folder: Path,
    *,
    limit: int = 100,
) -> StageTrainer:
    pad = 0
    return StageTrainer(
        model,
        stage,
        training_arguments(stage, folder, "fp32"),
        Samples(items),
        WithPicture.of(model.config, pad, Collator(pad)),  # type: ignore[arg-type]
        BrokenLog(folder / "broken.jsonl", limit, is_writer=True),
    )


def encoded(model: Any, number: int = 0, *, picture: bool = True) -> Encoded:
    """A sample with made-up tokens and noise for pixels."""
    config = model.config
    generator = torch.Generator().manual_seed(number)
    text = torch.randint(8, 60, (5,), generator=generator)
    if not picture:
        return Encoded(name=f"text {number}", source="test", ids=text, labels=text)
    side = config.image_size
    image = torch.full((config.token_layout.image_tokens((side, side), 1),), config.image_token_id)
    return Encoded(
        name=f"image {number}",
        source="test",
        ids=torch.cat([image, text]),
        labels=torch.cat([torch.full_like(image, -100), text]),
        pixels=torch.randn(1, 3, side, side, generator=generator),
        image_sizes=torch.tensor([[side, side]]),
        num_tiles=torch.tensor([1]),
        is_video=torch.tensor([False]),
    )


def broken(number: int) -> Broken:
    return Broken(f"bad {number}", "test", "it cannot be read")


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def part(name: str) -> str:
    """By hand, not by `part_of`."""
    if ".mergers." in name:
        return "merger"
    if ".tower." in name:
        return "tower"
    return "projector" if ".projector." in name else "language_model"


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, KINDS[0]) for name in STAGE_NAMES), *(("stage1", kind) for kind in KINDS[1:])],
)
def test_a_stage_trains_its_parts_at_their_rates_and_no_other(
    name: str, kind: str, tmp_path: Path
) -> None:
    """H2: mergers stand inside the encoder and are not at the tower's rate, or frozen with it."""
    model = randomize(LacoForConditionalGeneration(laco_config(kind, [{"after_block": 1}])))
    trainer = make_trainer(model, load_stage(name), [encoded(model)], tmp_path)
    optimizer = trainer.create_optimizer()
    found = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    one = {"merger": 1e-3, "projector": 1e-3}
    rest = {"tower": 2e-6, "merger": 1e-5, "projector": 1e-5, "language_model": 1e-5}
    expected = one if name == "stage1" else rest
    for parameter, weight in model.named_parameters():
        assert found.get(id(weight)) == expected.get(part(parameter)), parameter
        assert weight.requires_grad == (part(parameter) in expected), parameter
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["stage1", "stage2-ov"])
def test_rates_rise_over_three_percent_of_the_steps_and_fall_as_a_cosine(
    name: str, tmp_path: Path
) -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1}])
    stage, model = load_stage(name), randomize(LacoForConditionalGeneration(config))
    trainer = make_trainer(model, stage, [encoded(model)], tmp_path)
    steps, warmup = 1090, 33  # LCS-558K in batches of 512; 3 %, rounded up
    trainer.create_optimizer_and_scheduler(steps)
    optimizer: Any = trainer.optimizer
    scheduler: Any = trainer.lr_scheduler
    base, floor = (1e-3, 1e-7) if name == "stage1" else (1e-5, 1e-7)
    for step in range(steps + 1):
        share = step / warmup
        if step >= warmup:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
            share = floor / base + (1 - floor / base) * cosine
        for group in optimizer.param_groups:
            peak = 2e-6 if group["name"] == "tower" else base
            assert group["lr"] == pytest.approx(peak * share, rel=1e-9), (step, group["name"])
        if step < steps:
            optimizer.step()
            scheduler.step()
    ends = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert ends["merger"] == pytest.approx(1e-7, rel=1e-4)
    assert ends.get("tower", 2e-8) == pytest.approx(2e-8, rel=1e-4)  # see Stage.min_rate


@pytest.mark.parametrize(
    ("kind", "checkpointing"), [*((kind, True) for kind in KINDS), (KINDS[0], False)]
)
def test_in_stage_one_gradient_reaches_the_merger_through_frozen_blocks(
    kind: str, checkpointing: bool, tmp_path: Path
) -> None:
    """H4: a frozen encoder that runs without autograd would leave the merger as it was."""
    model = randomize(LacoForConditionalGeneration(laco_config(kind, [{"after_block": 1}])))
    before = weights(model)
    stage = short_stage("stage1", gradient_checkpointing=checkpointing, warmup_ratio=0)
    make_trainer(model, stage, [encoded(model, n) for n in range(4)], tmp_path).train()
    for name, weight in model.named_parameters():
        learns = part(name) in ("merger", "projector")
        assert torch.equal(weight, before[name]) != learns, name


def test_broken_samples_are_skipped_counted_and_named(tmp_path: Path) -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1}])
    model = randomize(LacoForConditionalGeneration(config))
    items: list[Encoded | Broken] = [encoded(model, n) for n in range(9)]
    items += [encoded(model, 9, picture=False), broken(1), broken(2)]
    trainer = make_trainer(model, short_stage(workers=1), items, tmp_path)
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.broken.count == 2
    named = read_lines(tmp_path / "broken.jsonl")
    assert sorted(entry["name"] for entry in named) == ["bad 1", "bad 2"]
    assert all(entry["reason"] == "it cannot be read" for entry in named)
    assert trainer.state.log_history[-2]["broken"] == 2


def test_a_signal_to_the_processes_of_a_terminal_spares_the_data_workers(tmp_path: Path) -> None:
    """torchrun and Ctrl-C signal a whole group; a worker that dies of it takes the step along."""
    config = laco_config("aimv2_vision_model", [{"after_block": 1}])
    model = randomize(LacoForConditionalGeneration(config))

    class Here(Samples):
        def __getitem__(self, index: int) -> Encoded | Broken:
            reason = f"{os.getpid() != trainer} {os.getpgrp() != group}"
            return replace(broken(index), reason=reason)

    trainer, group = os.getpid(), os.getpgrp()
    run = make_trainer(model, short_stage(workers=1), [broken(n) for n in range(4)], tmp_path)
    run.train_dataset = Here([broken(n) for n in range(4)])  # type: ignore[assignment]
    run.train()
    reasons = {entry["reason"] for entry in read_lines(tmp_path / "broken.jsonl")}
    assert reasons == {"True True"}


def test_a_step_of_nothing_but_broken_samples_leaves_the_model_whole(tmp_path: Path) -> None:
    """0 supervised tokens: the mean over them would be 0 / 0, and every weight nan."""
    config = laco_config("aimv2_vision_model", [{"after_block": 1}])
    model = randomize(LacoForConditionalGeneration(config))
    before = weights(model)
    trainer = make_trainer(
        model, short_stage(warmup_ratio=0), [broken(n) for n in range(4)], tmp_path
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_too_many_broken_samples_stop_the_run_with_their_names(tmp_path: Path) -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1}])
    model = randomize(LacoForConditionalGeneration(config))
    items = [encoded(model), *[broken(n) for n in range(3)]]
    with pytest.raises(
        DataError, match=r"(?s)3 samples are broken, more than the 2.*bad 1: it can"
    ):
        make_trainer(model, short_stage(), items, tmp_path, limit=2).train()


def test_samples_met_again_on_resumption_are_not_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    log = BrokenLog(path, 10, is_writer=True)
    log.add(3, [broken(1)])
    log.add(5, [broken(2), broken(3)])
    path.write_text(path.read_text() + '{"step": 6, "na')  # torn by a crash
    again = BrokenLog(path, 10, is_writer=True)
    again.go_on_from(4)
    assert again.count == 1
    again.add(5, [broken(2), broken(3)])
    assert [entry["name"] for entry in read_lines(path)] == ["bad 1", "bad 2", "bad 3"]
    assert again.summary() == {"test": 3}


@pytest.mark.parametrize("newline", [False, True])
def test_an_empty_picture_runs_the_encoder_and_changes_no_loss(newline: bool) -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1}])
    config.image_newline = newline
    model = randomize(LacoForConditionalGeneration(config))
    rows = [encoded(model, n, picture=False) for n in range(2)]
    rows[1] = replace(rows[1], ids=rows[1].ids[:3], labels=rows[1].labels[:3])
    plain = Collator(0)(rows)
    assert "pixel_values" not in plain
    filled = WithPicture.of(config, 0, Collator(0))(rows)  # type: ignore[arg-type]
    expected, loss = model(**plain).loss, model(**filled).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        if part(name) in ("tower", "merger", "projector") or "newline" in name:
            assert not weight.grad.any(), name


def test_a_batch_with_pictures_is_left_as_it_is() -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1}])
    model = LacoForConditionalGeneration(config)
    rows = [encoded(model, 0), encoded(model, 1, picture=False)]
    expected = Collator(0)(rows)
    found = WithPicture.of(config, 0, Collator(0))(rows)  # type: ignore[arg-type]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_stage_gives_the_model_its_newline_and_changes_nothing_else(checkpoint: Path) -> None:
    before = load_checkpoint(checkpoint).model.state_dict()
    assert load_stage("stage1").image_newline is None
    model = prepare_model(load_checkpoint(checkpoint), load_stage("stage1.5"))
    assert model.config.image_mode == "anyres"
    assert model.config.image_newline
    after = model.state_dict()
    assert set(after) - set(before) == {"model.image_newline"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    again = prepare_model(load_checkpoint(checkpoint), load_stage("stage1.5"))
    assert torch.equal(again.state_dict()["model.image_newline"], after["model.image_newline"])


def test_a_stage_without_the_newline_takes_it_from_a_model_that_has_it(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    before = set(prepare_model(loaded, load_stage("stage1.5")).state_dict())
    assert loaded.config.token_layout.newline
    prepare_model(loaded, load_stage("stage1"))  # which says nothing about it
    assert loaded.config.image_newline
    model = prepare_model(loaded, load_stage("stage1.5", {"image_newline": False}))
    assert before - set(model.state_dict()) == {"model.image_newline"}
    assert not loaded.config.token_layout.newline


def test_real_samples_of_text_and_pictures_train_together(checkpoint: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 8, text_only=3)
    loaded, stage = load_checkpoint(checkpoint), short_stage(micro_batch=1)
    model = prepare_model(loaded, stage)
    tokenizer = LacoProcessor.from_pretrained(checkpoint).tokenizer
    processor = LacoProcessor.from_config(loaded.config, tokenizer, loaded.preprocessing)
    samples = TrainingSet(Corpus(read_mixture(data)), processor, chat_options(stage))
    items = [samples[number] for number in range(len(samples))]
    assert all(isinstance(item, Encoded) for item in items)
    trainer = make_trainer(model, stage, items, tmp_path)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
