"""Progress bars with an estimate of the time left, for the stages of a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

Advance = Callable[[int, int], None]


class Progress:
    """Shows nothing; the base of `RichProgress` and what tests and libraries use."""

    @contextmanager
    def task(self, name: str) -> Iterator[Advance]:
        """A stage of the run; call what it gives with (done, total)."""
        yield lambda done, total: None

    def trainer_callback(self) -> TrainerCallback:
        """A callback for `transformers.Trainer`."""
        return TrainerCallback()


class RichProgress(Progress):
    """Bars on the terminal, on standard error."""

    @contextmanager
    def task(self, name: str) -> Iterator[Advance]:
        """A bar that stays, full, when the stage is done."""
        with _bar() as bar:
            number = bar.add_task(name, total=None)

            def advance(done: int, total: int) -> None:
                bar.update(number, completed=done, total=total)

            yield advance

    def trainer_callback(self) -> TrainerCallback:
        """A bar with the current loss."""
        return _BarCallback()


class _BarCallback(TrainerCallback):
    def __init__(self) -> None:
        self._bar = _bar()
        self._task = self._bar.add_task("training", total=None)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.start()
        self._bar.update(self._task, total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            text = f"training, loss {float(logs['loss']):.3f}"
            self._bar.update(self._task, description=text)
            if not self._bar.console.is_terminal:
                self._bar.console.print(f"step {state.global_step}/{state.max_steps}, {text[10:]}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


__all__ = ["Advance", "Progress", "RichProgress"]
