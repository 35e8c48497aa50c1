"""Train a recipe from scratch: data, tokenizer, model, `transformers.Trainer`, test, checkpoint."""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, set_seed
from transformers.models.aimv2.modeling_aimv2 import build_2d_sinusoidal_position_embedding

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.model.checkpoint import check_replaceable, save_checkpoint
from laco_deploy.training.card import training_card
from laco_deploy.training.data import make_dataset
from laco_deploy.training.dataset import (
    ChatDataset,
    Collator,
    Sample,
    read_samples,
    write_samples,
)
from laco_deploy.training.evaluation import Score, evaluate
from laco_deploy.training.progress import Progress
from laco_deploy.training.recipes import Recipe
from laco_deploy.training.tokenizer import END_TOKEN, IMAGE_TOKEN, PAD_TOKEN, train_tokenizer
from laco_runtimes.errors import ArgumentError
from laco_runtimes.prompt import DEFAULT_SYSTEM, chatml, load_tokenizer

PARITY_FOLDER = "parity"
"""Test pictures that travel with a checkpoint, for an export to compare engines on."""
PARITY_IMAGES = 30


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run left: the checkpoint, its test scores and its losses."""

    path: Path
    scores: tuple[Score, ...]
    losses: tuple[tuple[int, float], ...]
    """(step, mean training loss since the entry before)."""
    minutes: float
    """Training alone, without making the data and without the test."""


def train(
    recipe: Recipe,
    *,
    out: Path,
    data: Path,
    seed: int = 0,
    steps: int | None = None,
    workers: int = 2,
    command: str = "",
    progress: Progress | None = None,
) -> TrainResult:
    """Make the data where they are missing, train, test and write a checkpoint folder.

    The same recipe, seed and package versions on the same kind of CPU give the same model.

    Args:
        recipe: shapes, data and schedule.
        out: checkpoint folder; complete or absent afterwards.
        data: data set folder, made (or reused when its settings are the same).
        seed: of the data, the weights and the order of samples.
        steps: other than the recipe's, with the schedule stretched or shrunk to them.
        workers: processes that render the data.
        command: recorded in the model card.
        progress: shows what is going on; None is silent.

    Raises:
        ArgumentError: `steps` below 1.
        CheckpointError: `out` exists and is not a checkpoint.
        DataError: `data` holds another data set.
    """
    if steps is not None:
        if steps < 1:
            raise ArgumentError(f"{steps} training steps are too few. Ask for 1 or more.")
        recipe = replace(recipe, steps=steps, warmup_steps=min(recipe.warmup_steps, steps // 2))
    check_replaceable(out)
    progress = progress or Progress()
    with progress.task("pictures and questions") as advance:
        make_dataset(
            data,
            counts=recipe.counts,
            groups=recipe.groups,
            seed=seed,
            workers=workers,
            progress=advance,
        )
    samples = {split: read_samples(data / f"{split}.json") for split in ("train", "test")}
    set_seed(seed)
    tokenizer = train_tokenizer(corpus_of(samples["train"]), recipe.vocab_size)
    image, end, pad = map(tokenizer.vocab.__getitem__, (IMAGE_TOKEN, END_TOKEN, PAD_TOKEN))
    config = recipe.config(image_token_id=image, eos_token_id=end, pad_token_id=pad)
    model = LacoForConditionalGeneration(config)
    start_positions(model)
    preprocessing = recipe.preprocessing()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        plain = load_tokenizer(Path(scratch) / "tokenizer.json")
    template = chatml(plain, image_token_id=config.image_token_id)
    dataset = ChatDataset(samples["train"], plain, template, preprocessing, config.tokens_per_tile)
    started = time.perf_counter()
    losses = _fit(model, dataset, Collator(preprocessing, pad), recipe, seed, progress)
    minutes = (time.perf_counter() - started) / 60
    with progress.task("test questions") as advance:
        scores = evaluate(model, samples["test"], plain, template, preprocessing, progress=advance)
    record = _record(recipe, seed, command, minutes, losses, scores)

    def add_records(folder: Path) -> None:
        (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        (folder / "README.md").write_text(training_card(record, model), encoding="utf-8")
        write_samples(folder / PARITY_FOLDER, _spread(samples["test"], PARITY_IMAGES))

    save_checkpoint(
        out, model=model, tokenizer=tokenizer, preprocessing=preprocessing, extra=add_records
    )
    return TrainResult(out, tuple(scores), losses, minutes)


def _spread(samples: list[Sample], count: int) -> list[Sample]:
    """Samples of all tasks in turn, so that each is there as often as any other."""
    by_task: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        by_task.setdefault((sample.group, sample.tasks[0]), []).append(sample)
    rounds = zip_longest(*(by_task[key] for key in sorted(by_task)))
    return [sample for row in rounds for sample in row if sample is not None][:count]


@torch.no_grad()
def start_positions(model: LacoForConditionalGeneration) -> None:
    """Start the learned positions as sines, as loud as the normalised patches they are added to.

    Left at `initializer_range` they would be a thirtieth of the patches. Quieter sines learned
    digits more slowly in a short run (docs/model.md).
    """
    embeddings = model.model.vision_encoder.tower.embeddings
    table = embeddings.position_embedding.weight  # [N, C]
    height, width = model.config.patch_grid
    sines = build_2d_sinusoidal_position_embedding(height, width, table.shape[1])
    table.copy_(sines * math.sqrt(2))  # sine and cosine have a root mean square of 1 / sqrt(2)


def corpus_of(samples: list[Sample]) -> list[str]:
    """What a tokenizer is trained on: questions, answers and the frame of the prompts."""
    # The frame counts as often as the questions, so that it becomes few tokens.
    frame = ["system", "user", "assistant", "\n", DEFAULT_SYSTEM]
    texts = [text for s in samples for turn in s.turns for text in (turn.prompt, turn.answer)]
    return frame * len(samples) + texts


def _fit(
    model: LacoForConditionalGeneration,
    dataset: ChatDataset,
    collator: Collator,
    recipe: Recipe,
    seed: int,
    progress: Progress,
) -> tuple[tuple[int, float], ...]:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            logging_steps=recipe.log_every,
            save_strategy="no",
            report_to=[],
            seed=seed,
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=collator,
            callbacks=[progress.trainer_callback()],
        )
        # The stock callback prints a raw dict per log line; ours shows the same in the bar.
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ == "PrinterCallback":
                trainer.remove_callback(callback)
        trainer.train()
    return tuple(
        (int(entry["step"]), float(entry["loss"]))
        for entry in trainer.state.log_history
        if "loss" in entry
    )


def _record(
    recipe: Recipe,
    seed: int,
    command: str,
    minutes: float,
    losses: tuple[tuple[int, float], ...],
    scores: list[Score],
) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "command": command,
        "seed": seed,
        "minutes": round(minutes, 1),
        "recipe": asdict(recipe),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "test": [asdict(score) for score in scores],
        "losses": [[step, round(loss, 4)] for step, loss in losses],
    }


__all__ = ["TrainResult", "corpus_of", "start_positions", "train"]
