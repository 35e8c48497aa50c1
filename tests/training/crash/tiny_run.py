"""A small training run with all that a real one has: images, dropout, accumulation, groups."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback, TrainingArguments

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.training.corpus import LengthGroupedSampler
from laco_deploy.training.crash_safe import CrashSafeTrainer
from laco_deploy.training.parts import parameter_groups
from tests.model.tower_samples import laco_config

SAMPLES = 44
IMAGE_TOKENS = 16
RATES = {"tower": 2e-3, "merger": 1e-2, "projector": 1e-2, "language_model": 1e-2}


class Pictures(Dataset[dict[str, Tensor]]):
    """Noise and words, drawn from the index alone; every third sample is text without a picture."""

    def __init__(self, count: int = SAMPLES, *, texts: bool = True) -> None:
        self.count = count
        self.texts = texts

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(index)
        words = torch.randint(4, 64, (8,), generator=draw)
        if self.texts and index % 3 == 0:
            return {"ids": torch.cat([torch.full((IMAGE_TOKENS,), 4), words])}
        marks = torch.full((IMAGE_TOKENS,), 3)
        return {
            "ids": torch.cat([marks, words]),
            "pixels": torch.randn(1, 3, 56, 56, generator=draw),
        }


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = torch.stack([sample["ids"] for sample in samples])
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids <= 4, -100)}
    pixels = [sample["pixels"] for sample in samples if "pixels" in sample]
    return {**batch, "pixel_values": torch.cat(pixels)} if pixels else batch


def tiny_model() -> LacoForConditionalGeneration:
    """Dropout in tower and language model, so that a wrong random state shows."""
    torch.manual_seed(7)
    config = laco_config("aimv2_vision_model", [{"after_block": 1}], attention_dropout=0.2)
    config.text.attention_dropout = 0.2
    return LacoForConditionalGeneration(config)


class Diary(TrainerCallback):
    """After every step one line with the digest of weights, optimizer and random state."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        digest = hashlib.sha256()
        for parameter in kwargs["model"].parameters():
            digest.update(_bytes(parameter))
            for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                digest.update(key.encode() + _bytes(value))
        rates = [group["lr"] for group in optimizer.param_groups]
        digest.update(json.dumps(rates).encode() + _bytes(torch.get_rng_state()))
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, "digest": digest.hexdigest()}) + "\n")


def _bytes(tensor: Tensor) -> bytes:
    """Of the piece this process holds, where the tensor is sharded."""
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return (
        tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.dim()
        else (str(tensor.item()).encode())
    )


class TinyTrainer(CrashSafeTrainer):
    """With the sampler of the stages and a rate for each part."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        samples: Any = self.train_dataset
        lengths = [-5 if index % 3 == 0 else 5 + index % 7 for index in range(len(samples))]
        return LengthGroupedSampler(lengths, 4, self.args.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            whole = self.accelerator.unwrap_model(model or self.model)
            self.optimizer = torch.optim.AdamW(parameter_groups(whole, RATES), weight_decay=0.0)
        return self.optimizer


def tiny_trainer(out: Path, **changes: Any) -> TinyTrainer:
    """The run under test.

    Args:
        out: its folder, which must be there.
        **changes: of `TrainingArguments` or `CrashSafeTrainer`; also `dataset`, `kind` (the class)
            and `diary` (the name of the file).
    """
    kind: type[TinyTrainer] = changes.pop("kind", TinyTrainer)
    diary = out / changes.pop("diary", "diary.jsonl")
    own = {key: changes.pop(key) for key in ("settings", "may_differ", "report") if key in changes}
    dataset = changes.pop("dataset", None) or Pictures()
    arguments = TrainingArguments(
        **{
            "output_dir": str(out),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 40,
            "save_steps": 5,
            "save_total_limit": 2,
            "logging_steps": 3,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.01},
            "warmup_steps": 4,
            "max_grad_norm": 1.0,
            **changes,
        }
    )
    return kind(
        tiny_model(),
        arguments,
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[Diary(diary)],
        **own,
    )


def read_diary(out: Path, name: str = "diary.jsonl") -> list[dict[str, Any]]:
    """Lines of the diary; the last may have been cut off by a kill."""
    lines = []
    for line in (out / name).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def digests(out: Path, name: str = "diary.jsonl") -> dict[int, str]:
    """Digest by step; where a step was taken twice, all must agree."""
    found: dict[int, str] = {}
    for line in read_diary(out, name):
        known = found.setdefault(line["step"], line["digest"])
        if known != line["digest"]:
            found[line["step"]] = f"{known} and {line['digest']}"
    return found


def losses(trainer: CrashSafeTrainer) -> list[Mapping[str, Any]]:
    """The log of the run without clock times."""
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [
        {key: value for key, value in line.items() if key not in timed}
        for line in trainer.state.log_history
    ]
