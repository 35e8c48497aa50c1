"""The loop that trains a model on given batches, and its snapshots on disk."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.training.compare.peers import Peers
from laco_deploy.training.compare.pictures import Pictures
from laco_deploy.training.parts import Part, parameter_groups

_LOG_EVERY = 20
_MAX_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up to each group's peak, then a cosine down to a share of it."""

    steps: int
    warmup_steps: int
    floor_share: float

    def factor(self, step: int) -> float:
        """Of the peak rate, for a step counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        way = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.floor_share + (1 - self.floor_share) * (1 + math.cos(math.pi * way)) / 2


@dataclass(slots=True)
class Fit:
    """Where a fit stands: steps done, mean losses, and the seconds of processor time it took."""

    step: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean loss since the entry before)."""
    cpu_seconds: float = 0.0
    """Of this process, all threads: other programs on the machine do not count."""
    wall_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshots:
    """A file in which an interrupted fit finds its weights and its optimizer again.

    No random numbers are kept: the model draws none, and the batches follow from the step.
    """

    path: Path
    digest: str
    """Of the settings; a snapshot of others is not read."""
    every_seconds: float = 120.0

    def save(
        self, model: LacoForConditionalGeneration, optimizer: torch.optim.Optimizer, state: Fit
    ) -> None:
        """Replace the file, whole or not at all."""
        tensors: dict[str, Tensor] = {f"model.{n}": p for n, p in model.named_parameters()}
        for name, values in _optimizer_state(model, optimizer).items():
            tensors |= {f"{key}.{name}": value for key, value in values.items()}
        about = {
            "digest": self.digest,
            "step": str(state.step),
            "losses": json.dumps(state.losses),
            "cpu_seconds": str(state.cpu_seconds),
            "wall_seconds": str(state.wall_seconds),
        }
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        save_file({name: value.detach() for name, value in tensors.items()}, temporary, about)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def load(self, model: LacoForConditionalGeneration, optimizer: torch.optim.Optimizer) -> Fit:
        """Put weights and optimizer back; a fresh `Fit` where there is no snapshot of this run."""
        try:
            with safe_open(self.path, framework="pt") as file:
                about: Mapping[str, str] = file.metadata() or {}
                if about.get("digest") != self.digest:
                    return Fit()
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        parameter.copy_(file.get_tensor(f"model.{name}"))
                        optimizer.state[parameter] = {
                            key: file.get_tensor(f"{key}.{name}")
                            for key in ("step", "exp_avg", "exp_avg_sq")
                        }
        except (FileNotFoundError, SafetensorError):
            return Fit()
        losses = [(int(step), float(loss)) for step, loss in json.loads(about["losses"])]
        return Fit(
            int(about["step"]), losses, float(about["cpu_seconds"]), float(about["wall_seconds"])
        )


def fit(
    model: LacoForConditionalGeneration,
    pictures: Pictures,
    batches: Sequence[Sequence[int]],
    *,
    learning_rates: Mapping[Part, float],
    schedule: Schedule,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    peers: Peers | None = None,
    snapshots: Snapshots | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fit:
    """Train in place with AdamW, one step per batch; parts without a rate are frozen.

    Args:
        model: on the CPU.
        pictures: to make the batches of.
        batches: indices of each step's samples, as many as the schedule has steps.
        learning_rates: peak rate per part.
        schedule: of the rates.
        beta2: of AdamW.
        weight_decay: of AdamW.
        peers: the processes that share each batch; their weights must be equal at the start.
        snapshots: where to go on from and what to leave on the way; None leaves nothing.
        progress: called with (steps done, steps in all).

    Returns:
        Losses and times, those before an interruption included.
    """
    peers = peers or Peers()
    groups = parameter_groups(model, learning_rates)
    trainable = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, beta2), weight_decay=weight_decay)
    peaks = [group["lr"] for group in groups]
    state = Fit() if snapshots is None else snapshots.load(model, optimizer)
    before = state.cpu_seconds - time.process_time(), state.wall_seconds - time.perf_counter()
    saved, recent = time.monotonic(), list[float]()
    model.train()
    for step in range(state.step, schedule.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(step)
        loss = _loss(model, pictures, batches[step], peers)
        optimizer.zero_grad()
        loss.backward()
        peers.add([loss.detach(), *(p.grad for p in trainable if p.grad is not None)])
        torch.nn.utils.clip_grad_norm_(trainable, _MAX_NORM)
        optimizer.step()
        recent.append(float(loss.detach()))
        state.step = step + 1
        if state.step % _LOG_EVERY == 0 or state.step == schedule.steps:
            state.losses.append((state.step, sum(recent) / len(recent)))
            recent.clear()
        state.cpu_seconds = before[0] + time.process_time()
        state.wall_seconds = before[1] + time.perf_counter()
        # Only where the mean of the losses begins anew, so that a resumed run logs the same.
        due = snapshots is not None and time.monotonic() - saved > snapshots.every_seconds
        if snapshots is not None and due and not recent and peers.rank == 0:
            snapshots.save(model, optimizer, state)
            saved = time.monotonic()
        if progress is not None:
            progress(state.step, schedule.steps)
    model.eval()
    return state


def _loss(
    model: LacoForConditionalGeneration, pictures: Pictures, indices: Sequence[int], peers: Peers
) -> Tensor:
    """This process's part of the mean loss over all answer tokens of the batch."""
    tokens = sum(pictures.answer_tokens[index] for index in indices)
    batch = pictures.batch(peers.share(indices), model.config.tokens_per_tile)
    loss: Tensor = model(**batch, num_items_in_batch=tokens).loss
    return loss


def _optimizer_state(
    model: LacoForConditionalGeneration, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    states: Mapping[Any, dict[str, Tensor]] = optimizer.state
    return {names[parameter]: values for parameter, values in states.items()}


__all__ = ["Fit", "Schedule", "Snapshots", "fit"]
