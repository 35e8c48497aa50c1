"""What happens beside the steps of a stage: log, plots, sample answers, and a stop on request."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from laco_deploy.training.broken_log import BrokenLog
from laco_deploy.training.plots import draw_plots
from laco_deploy.training.run_files import append_lines, keep_until, read_lines, replace_text
from laco_deploy.training.run_folder import STAGE_FILE, RunFolder

if TYPE_CHECKING:
    from laco_deploy.training.stage_trainer import StageTrainer


class Record(TrainerCallback):
    """Writes settings, log and plots into the folder of the run.

    Args:
        run: the folder.
        settings: resolved, as YAML.
        broken: the samples that were skipped.
    """

    def __init__(self, run: RunFolder, settings: str, broken: BrokenLog) -> None:
        self._run, self._settings, self._broken = run, settings, broken

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cut away what an earlier run noted after the snapshot that this one goes on from."""
        self._broken.go_on_from(state.global_step)
        if state.is_world_process_zero:
            replace_text(self._run.path / STAGE_FILE, self._settings)
            keep_until(self._run.log, state.global_step)
            keep_until(self._run.samples, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add an entry."""
        if state.is_world_process_zero:
            append_lines(self._run.log, [state.log_history[-1]])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw; a run saves at its end as well."""
        self._draw(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw."""
        self._draw(state)

    def _draw(self, state: Any) -> None:
        if state.is_world_process_zero:
            draw_plots(read_lines(self._run.log), self._run.path)


class SampleAnswers(TrainerCallback):
    """Has the trainer write sample answers every so many steps.

    Args:
        every: number of optimizer steps; 0 is never.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._trainer: StageTrainer | None = None

    def attach(self, trainer: StageTrainer) -> None:
        """Tell it whose answers: the trainer is made after its callbacks."""
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write them when it is time."""
        if self._trainer and self._every and state.global_step % self._every == 0:
            self._trainer.write_samples()


def leave_group(init: Callable[[int], object] | None, worker: int) -> None:
    """Start a data worker in a process group of its own.

    A terminal and torchrun send their signals to the whole group of a process. Its workers would
    die of them, and the step that is to be finished would have no data.

    Args:
        init: what else starts a worker.
        worker: its number.
    """
    os.setpgrp()
    if init is not None:
        init(worker)


class StopOnSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM the step is finished, a snapshot saved, and training ends in order.

    With several processes all stop after the same step, whichever was asked. A second Ctrl-C
    interrupts at once.
    """

    def __init__(self) -> None:
        self.stopped = False
        """Whether training ended before its last step."""
        self._asked = False
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals in here. Only in the main thread: Python allows no other."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process forked with this handler
            if number == signal.SIGTERM:
                os._exit(1)
            return
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop where any process was asked to."""
        asked = self._asked
        if args.world_size > 1:
            flag = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True


__all__ = ["Record", "SampleAnswers", "StopOnSignal", "leave_group"]
