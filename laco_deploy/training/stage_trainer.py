"""`StageTrainer`: a stage on transformers' Trainer, from one process to many."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, TrainingArguments

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.training.answers import Answer, Examiner, score
from laco_deploy.training.broken_log import BrokenLog, BrokenSample
from laco_deploy.training.corpus import LengthGroupedSampler
from laco_deploy.training.crash_safe import CrashSafeTrainer
from laco_deploy.training.parts import parameter_groups
from laco_deploy.training.precision import Precision
from laco_deploy.training.run_files import append_lines
from laco_deploy.training.stage import Stage
from laco_deploy.training.stage_callbacks import leave_group

BROKEN = "broken"
"""Key of a batch under which the collator names samples that it had to leave out."""

MAY_DIFFER = (
    "max_broken",
    "save_every",
    "keep_snapshots",
    "workers",
    "evaluate_every",
    "evaluate_limit",
    "max_new_tokens",
    "sample_every",
    "sample_count",
)
"""Settings of a stage that may change when a run goes on; none of them touches a weight."""


class SizedSamples(Protocol):
    """A map-style data set that can tell how long its samples are."""

    @property
    def lengths(self) -> list[int]:
        """Tokens per sample, roughly; below zero for text alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class StageTrainer(CrashSafeTrainer):
    """Trains the parts that a stage names, each at its own rate.

    Args:
        model: what is not in `stage.learning_rates` is frozen.
        stage: settings.
        arguments: made by `training_arguments`.
        samples: what to train on.
        collate: a batch whose every entry is an argument of the model's `forward`, and `BROKEN`.
        broken: counts what could not be read.
        examiner: asks the held-out questions, if there are any.
        sampled: indices of the questions whose answers are written down as samples.
        samples_file: where.
        settings: further ones that a resumed run must share, such as the data's fingerprint.
        report: called on the first process with sentences for the user.
        callbacks: of `Trainer`.

    Raises:
        ConfigError: a part that does not exist.
    """

    def __init__(
        self,
        model: LacoForConditionalGeneration,
        stage: Stage,
        arguments: TrainingArguments,
        samples: SizedSamples,
        collate: Callable[[Sequence[Any]], dict[str, Any]],
        broken: BrokenLog,
        *,
        examiner: Examiner | None = None,
        sampled: Sequence[int] = (),
        samples_file: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = lambda text: None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.stage = stage
        self.broken = broken
        self.examiner = examiner
        self._sampled, self._samples_file = sampled, samples_file
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=samples,
            eval_dataset=None if examiner is None else examiner.questions,
            data_collator=collate,
            callbacks=callbacks,
            settings={**stage.model_dump(mode="json"), **(settings or {})},
            may_differ=MAY_DIFFER,
            report=report,
        )

    def create_accelerator_and_postprocess(self) -> None:
        """As of `Trainer`; on CPUs accelerate knows no FSDP and would take DDP without a word."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            if state.mixed_precision != "no":
                plugin.set_mixed_precision(state.mixed_precision)
            state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
            PartialState().distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    # ---- What learns, how fast, and on which samples

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the parts of the stage; every other part is frozen."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                parameter_groups(model or self._whole_model, self.stage.learning_rates),
                lr=self.stage.base_learning_rate,
                betas=self.stage.adam_betas,
                weight_decay=self.stage.weight_decay,
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        samples: Any = self.train_dataset
        lengths = samples.lengths if self.stage.length_grouping else [1] * len(samples)
        return LengthGroupedSampler(lengths, self.stage.global_batch, self.stage.seed)

    @property
    def _whole_model(self) -> nn.Module:
        model: Any = self.model  # typed as one that may be missing
        unwrapped: nn.Module = self.accelerator.unwrap_model(model)
        return unwrapped

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As of `Trainer`; its workers are out of the way of signals to this process."""
        loader: Any = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # accelerate's wrapper hands it on
        inner.worker_init_fn = functools.partial(leave_group, inner.worker_init_fn)
        return cast(DataLoader[Any], loader)

    # ---- A step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro batches of a step, without the reports on broken samples, which are noted.

        Raises:
            DataError: too many samples are broken.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        found: list[BrokenSample] = [
            sample for batch in batches for sample in batch.pop(BROKEN, None) or ()
        ]
        self._note_broken(found)
        if isinstance(items, Tensor):
            items = items.clamp(min=1)  # where every sample was broken the loss is 0, not 0 / 0
        return batches, items

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As of `Trainer`; no keys and values are kept for a next token."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def _note_broken(self, found: list[BrokenSample]) -> None:
        if self.args.world_size > 1:
            # Names are gathered only where there are any; a number is cheap in every step.
            count = torch.tensor(len(found), device=self.args.device)
            if int(self.accelerator.reduce(count, "sum")) == 0:
                return
            found = gather_object(found)
        if found:
            self.broken.add(self.state.global_step + 1, found)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As of `Trainer`, with the rate of every part and the number of broken samples."""
        if "learning_rate" in logs and "loss" in logs:
            rates = self.stage.learning_rates
            optimizer: Any = self.optimizer
            groups = [group["name"] for group in optimizer.param_groups]
            share = logs["learning_rate"] / rates[groups[0]]  # one schedule for all
            logs["learning_rate"] = self.stage.base_learning_rate * share
            logs |= {f"learning_rate/{part}": rates[part] * share for part in groups}
            logs["broken"] = self.broken.count
        super().log(logs, start_time)

    # ---- Questions

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Exact match and ANLS of greedy answers to the held-out questions."""
        if self.examiner is None:
            return {}
        limit = self.stage.evaluate_limit
        numbers = range(len(self.examiner))[:limit]
        answers = self._ask(list(numbers))
        metrics = {f"{metric_key_prefix}_{name}": v for name, v in score(answers).items()}
        self.log({**metrics})  # it adds to what it is given
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def write_samples(self) -> None:
        """Answer the sample questions and note the answers; every process must call it."""
        if self.examiner is None or self._samples_file is None:
            return
        answers = self._ask(list(self._sampled))
        if self.is_world_process_zero():
            step = {"step": self.state.global_step}
            append_lines(self._samples_file, [{**step, **asdict(answer)} for answer in answers])

    def _ask(self, numbers: list[int]) -> list[Answer]:
        """Answers of all processes, in the order of the questions."""
        if self.examiner is None:
            return []
        model: Any = self._whole_model
        if self.args.world_size == 1 or self.is_fsdp_enabled:
            # With FSDP each process holds a piece of every weight: all go through all questions.
            return self.examiner.ask(model, numbers)
        mine = numbers[self.args.process_index :: self.args.world_size]
        answers: list[Answer] = gather_object(self.examiner.ask(model, mine))
        return sorted(answers, key=lambda answer: answer.number)


def sharded_layers(model: LacoForConditionalGeneration) -> set[str]:
    """Classes of the blocks of encoder and language model: FSDP shards and gathers them whole."""
    encoder: Any = model.model.vision_encoder
    language_model: Any = model.model.language_model
    blocks = [*encoder.tower_type.blocks(encoder.tower), *language_model.layers]
    return {type(block).__name__ for block in blocks}


def training_arguments(
    stage: Stage,
    folder: Path,
    precision: Precision,
    *,
    processes: int = 1,
    evaluates: bool = False,
    sharded: Iterable[str] = (),
) -> TrainingArguments:
    """A stage in the words of transformers.

    Args:
        stage: settings.
        folder: of the run.
        precision: resolved, see `resolve_precision`.
        processes: that train together.
        evaluates: whether there are held-out questions.
        sharded: with FSDP, what `sharded_layers` found.

    Raises:
        ConfigError: the global batch is no multiple of micro batch and processes.
    """
    cuda = torch.cuda.is_available()
    evaluates = evaluates and stage.evaluate_every > 0
    cosine = stage.schedule == "cosine"
    sharding: dict[str, Any] = {}
    if stage.fsdp:
        sharding = {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "activation_checkpointing": stage.gradient_checkpointing,
                "transformer_layer_cls_to_wrap": sorted(sharded),
            },
        }
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        per_device_train_batch_size=stage.micro_batch,
        gradient_accumulation_steps=stage.accumulation(processes),
        learning_rate=stage.base_learning_rate,
        lr_scheduler_type="cosine_with_min_lr" if cosine else "constant_with_warmup",
        lr_scheduler_kwargs={"min_lr_rate": stage.min_rate} if cosine else {},
        warmup_steps=stage.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        bf16=precision == "bf16",
        tf32=True if cuda and torch.cuda.get_device_capability() >= (8, 0) else None,
        use_cpu=not cuda,
        activation_checkpointing=stage.gradient_checkpointing and not stage.fsdp,
        ddp_find_unused_parameters=False,  # see WithPicture
        **sharding,
        save_strategy="steps",
        save_steps=stage.save_every,
        save_total_limit=stage.keep_snapshots,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=stage.evaluate_every if evaluates else None,
        logging_steps=stage.log_every,
        report_to=[],
        seed=stage.seed,
        dataloader_num_workers=stage.workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        disable_tqdm=True,
    )


__all__ = [
    "BROKEN",
    "MAY_DIFFER",
    "SizedSamples",
    "StageTrainer",
    "sharded_layers",
    "training_arguments",
]
