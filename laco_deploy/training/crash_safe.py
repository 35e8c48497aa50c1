"""A `Trainer` that may be killed at any moment and goes on to the bit.

What transformers 5.23 does instead: it writes into the final folder, without flushing, and keeps
optimizer, schedule and random state as pickles (`torch.save`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import TrainOutput

from laco_deploy.terminal import say
from laco_deploy.training.snapshots import folder, rng, settings, tensors
from laco_deploy.training.snapshots.folder import Snapshot
from laco_runtimes.errors import ArgumentError, CheckpointError

TRAINER_STATE = "trainer_state.json"  # the name under which `Trainer.train` reads it
_FAILED, _NONE = -2, -1

# Options of TrainingArguments under which a resumed run could not be the same as an unbroken one,
# or which would write in transformers' own way.
_REFUSED: Mapping[str, Any] = {
    "auto_find_batch_size": False,
    "dataloader_in_order": True,
    "deepspeed": None,
    "enable_jit_checkpoint": False,
    "ignore_data_skip": False,
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "save_only_model": False,
}


# What every run is asked for, beside the `settings` it was given.
_OWN = ("processes", "micro_batch", "accumulation", "steps", "seed", "data_seed", "samples")


def _tell(text: str) -> None:
    say(text, to_stderr=True)


class CrashSafeTrainer(Trainer):
    """transformers' Trainer with snapshots that are whole or not there.

    Snapshots are in `<output_dir>/snapshots/step-...`, as often as `save_steps` says and
    `save_total_limit` of them. A resumed run repeats the unbroken one to the bit: weights,
    optimizer, order of data, dropout, logged losses. That holds on a CPU with the same number of
    threads and is tested with one process and with two (DDP, FSDP2). A sample must depend on its
    index alone, since batches are fetched ahead; all processes must see one file system.

    Args:
        *args: as of `Trainer`.
        settings: what a resumed run must have in common with the run that wrote the snapshot, in
            JSON, such as the fingerprint of the data and the resolved stage. Number of processes,
            batch sizes, steps, seeds and number of samples are compared as well.
        may_differ: names of such settings that may change on resumption.
        report: called with sentences for the user.
        **kwargs: as of `Trainer`.

    Raises:
        ArgumentError: an option of `TrainingArguments` that does not go with resuming to the bit.
    """

    def __init__(
        self,
        *args: Any,
        settings: Mapping[str, Any] | None = None,
        may_differ: Collection[str] = (),
        report: Callable[[str], None] = _tell,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for option, value in _REFUSED.items():
            if getattr(self.args, option, value) not in (value, None):
                raise ArgumentError(
                    f"{option}={getattr(self.args, option)} does not go with resuming to the bit. "
                    f"Leave it at {value}."
                )
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise ArgumentError(
                "FSDP1 flattens parameters, so that a snapshot would fit nowhere else. "
                "Set fsdp_version to 2."
            )
        self._settings = dict(settings or {})
        self._may_differ = frozenset(may_differ)
        self._report = report
        self._resumed: Snapshot | None = None
        self._loss_is_due = False

    @property
    def snapshot_folder(self) -> Path:
        """Where the snapshots are."""
        return Path(str(self.args.output_dir)) / "snapshots"

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train to the end.

        Args:
            resume_from_checkpoint: True goes on from the newest whole snapshot, or starts where
                there is none yet. No path: to go back further, remove the newer snapshots.
            trial: as of `Trainer`.
            ignore_keys_for_eval: as of `Trainer`.

        Raises:
            ArgumentError: a path was given.
            CheckpointError: no snapshot is whole, it is of another run, there are snapshots and
                resuming was not asked for, or another process trains into this folder.
        """
        if isinstance(resume_from_checkpoint, str):
            raise ArgumentError(
                "a run resumes from its newest snapshot. Give True, and remove newer snapshots "
                "to go back further."
            )
        with ExitStack() as claim:
            self._resumed = self._choose_snapshot(bool(resume_from_checkpoint), claim)
            self._loss_is_due = True
            return super().train(
                resume_from_checkpoint=str(self._resumed.path) if self._resumed else None,
                trial=trial,
                ignore_keys_for_eval=ignore_keys_for_eval,
            )

    def gather_weights(self) -> dict[str, Tensor]:
        """Whole weights by name on the CPU, on the first process; the others get nothing.

        Every process must call it. A tied weight is there once, as in a checkpoint.
        """
        model = self.accelerator.unwrap_model(self.model)
        return tensors.gather(tensors.model_tensors(model), here=self.args.process_index == 0)

    # ---- Choosing

    def _choose_snapshot(self, resume: bool, claim: ExitStack) -> Snapshot | None:
        """The first process looks, all take what it found: a look moves folders."""
        step, failure = _NONE, None
        if self.args.process_index == 0:
            try:
                claim.enter_context(folder.claimed(self.snapshot_folder))
                found = self._look(resume)
                step = found.step if found else _NONE
            except Exception as error:  # the others must not wait for it
                step, failure = _FAILED, error
        step = self._from_first(step)
        if failure is not None:
            raise failure
        if step == _FAILED:
            raise CheckpointError("the first process could not resume. See what it says.")
        if step == _NONE:
            return None
        return Snapshot(self.snapshot_folder / folder.snapshot_name(step), step)

    def _look(self, resume: bool) -> Snapshot | None:
        if resume:
            return folder.newest_snapshot(self.snapshot_folder, self._report)
        if folder.snapshots(self.snapshot_folder):
            raise CheckpointError(
                f"'{self.snapshot_folder}' holds snapshots of an earlier run. "
                "Resume it, choose another folder, or remove them."
            )
        return None

    def _from_first(self, number: int) -> int:
        if self.args.world_size == 1:
            return number
        box = torch.tensor([number], dtype=torch.int64, device=self.args.device)
        distributed.broadcast(box, src=0)
        return int(box.item())

    def _run_settings(self, max_steps: int) -> dict[str, Any]:
        """What two runs must have in common for one to go on with the other, as JSON gives it."""
        dataset: Any = self.train_dataset
        own = (
            self.args.world_size,
            self.args.per_device_train_batch_size,
            self.args.gradient_accumulation_steps,
            max_steps,
            self.args.seed,
            self.args.data_seed,
            len(dataset) if hasattr(dataset, "__len__") else None,
        )
        values = {**self._settings, **dict(zip(_OWN, own, strict=True))}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def _check_settings(self, snapshot: Snapshot, max_steps: int) -> None:
        stored = snapshot.read_json("settings.json")
        now = self._run_settings(max_steps)
        settings.check_settings(snapshot.path, stored["settings"], now, self._may_differ)
        odd = settings.differences(stored["environment"], settings.environment(self.args.device))
        was = {name: value for name, value in stored["settings"].items() if name in _OWN}
        odd += settings.differences(was, {name: now[name] for name in _OWN})
        if odd and self.args.process_index == 0:
            self._report(f"going on, but not to the bit: {'; '.join(odd)}.")

    # ---- Writing

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        first = self.args.process_index == 0
        self.store_flos()
        partial = folder.unfinished(self.snapshot_folder, self.state.global_step)
        if first:
            folder.begin(partial)
        self.accelerator.wait_for_everyone()
        self._write_rank(partial)
        weights = self.gather_weights()
        inner = self.accelerator.unwrap_model(self.model)
        optimizer, scheduler = self._optimizer_and_scheduler
        state, rest = tensors.optimizer_state(inner, optimizer)
        state = tensors.gather(state, here=first)
        if first:
            self._write_model(partial, weights)
            folder.write_tensors(partial / "optimizer.safetensors", state)
            folder.write_json(partial / "optimizer.json", rest)
            folder.write_json(partial / "scheduler.json", scheduler.state_dict())
            if self.accelerator.scaler is not None:
                folder.write_json(partial / "scaler.json", self.accelerator.scaler.state_dict())
            stored = {
                "settings": self._run_settings(self.state.max_steps),
                "environment": settings.environment(self.args.device),
            }
            folder.write_json(partial / "settings.json", stored)
            self._refresh_callbacks()
            folder.write_json(partial / TRAINER_STATE, dataclasses.asdict(self.state))
        self.accelerator.wait_for_everyone()
        if first:
            limit = self.args.save_total_limit
            folder.finish(partial, keep=limit if limit and limit > 0 else None)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model and processing class in the Hugging Face layout, without pickles.

        Every process must call it. An existing folder is written into, not replaced as a whole.
        """
        weights = self.gather_weights()
        if self.args.process_index == 0:
            out = Path(output_dir or str(self.args.output_dir))
            out.mkdir(parents=True, exist_ok=True)
            self._write_model(out, weights)

    def _write_model(self, out: Path, weights: Mapping[str, Tensor]) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "config"):
            model.config.save_pretrained(out)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(out)
        folder.sync_files(out)
        folder.write_tensors(out / "model.safetensors", weights)

    def _write_rank(self, partial: Path) -> None:
        """What each process has of its own: random numbers, and the loss since the last log."""
        state, rest = rng.rng_state()
        state["loss_since_log"] = self._tr_loss.detach().cpu()
        rest["loss"] = {
            "sum_logged": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
        }
        folder.write_tensors(partial / f"{self._rank_name}.safetensors", state)
        folder.write_json(partial / f"{self._rank_name}.json", rest)

    @property
    def _rank_name(self) -> str:
        return f"rank-{self.args.process_index:05d}"

    def _refresh_callbacks(self) -> None:
        """State of the callbacks that have one; `Trainer` does this as it saves."""
        exportable: Any = [
            callback
            for callback in [*self.callback_handler.callbacks, self.control]
            if isinstance(callback, ExportableState)
        ]
        self.state.stateful_callbacks = TrainerState(
            stateful_callbacks=exportable
        ).stateful_callbacks

    # ---- Reading; `Trainer.train` calls these in its order

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        inner = self.accelerator.unwrap_model(self.model if model is None else model)
        tensors.load_model(inner, self._snapshot.read_tensors("model.safetensors"))

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        if self._resumed is not None:
            self._check_settings(self._resumed, max_steps)
        return super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._resumed is None:
            return
        optimizer, scheduler = self._optimizer_and_scheduler
        tensors.load_optimizer(
            self.accelerator.unwrap_model(self.model),
            optimizer,
            self._resumed.read_tensors("optimizer.safetensors"),
            self._resumed.read_json("optimizer.json"),
        )
        scheduler.load_state_dict(self._resumed.read_json("scheduler.json"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._resumed is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self._snapshot.read_json("scaler.json"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called when the batches of the first step are there, so fetching them changes nothing."""
        if self._resumed is None:
            return
        if not (self._snapshot.path / f"{self._rank_name}.json").is_file():
            self._report(f"process {self.args.process_index} is new; its dropout starts afresh.")
            return
        state = self._snapshot.read_tensors(f"{self._rank_name}.safetensors")
        rng.restore_rng(state, self._snapshot.read_json(f"{self._rank_name}.json"))

    @property
    def _optimizer_and_scheduler(self) -> tuple[Any, Any]:
        """There once training has begun; `Trainer` makes them late and declares them optional."""
        return self.optimizer, self.lr_scheduler

    @property
    def _snapshot(self) -> Snapshot:
        if self._resumed is None:
            raise CheckpointError("this run was not resumed. Call train(True) first.")
        return self._resumed

    # ---- What `Trainer` starts anew on resumption

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._restore_loss()
        if self.state.global_step >= self.state.max_steps:
            # Killed after the snapshot of the last step: `Trainer` would take one step too many.
            self.control.should_training_stop = True
            return
        _set_epoch(kwargs["train_dataloader"], kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _restore_loss(self) -> None:
        """Take up the sums of loss once, after `Trainer` has set them to zero."""
        if self._resumed is None or not self._loss_is_due:
            return
        self._loss_is_due = False
        rest_file = self._resumed.path / f"{self._rank_name}.json"
        if not rest_file.is_file():
            return
        state = self._resumed.read_tensors(f"{self._rank_name}.safetensors")
        loss = self._resumed.read_json(rest_file.name)["loss"]
        self._tr_loss = state["loss_since_log"].to(self._tr_loss)
        self._total_loss_scalar = float(loss["sum_logged"])
        self._globalstep_last_logged = int(loss["last_logged_step"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As `Trainer.log`; the closing `train_loss` is the mean over the whole run."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _finalize_training(
        self, trial: Any, num_train_samples: Any, start_time: float
    ) -> TrainOutput:
        self._restore_loss()  # no epoch was run where the snapshot ends one, and the run
        output: TrainOutput = super()._finalize_training(trial, num_train_samples, start_time)
        return output._replace(training_loss=output.metrics["train_loss"])


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell every sampler its epoch.

    accelerate 1.15 does not reach one below the wrappers of a resumed run of several processes,
    which would go on in the order of the first epoch.
    """
    layer: Any = loader
    while layer is not None:
        for part in (layer, getattr(layer, "sampler", None)):
            if set_epoch := getattr(part, "set_epoch", None):
                set_epoch(epoch)
        layer = getattr(layer, "batch_sampler", None)


__all__ = ["CrashSafeTrainer"]
