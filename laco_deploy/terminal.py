"""What every command prints alike: whole lines, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Advance = Callable[[str, int, int], None]
"""Told of a stage, its steps done and its steps in all."""

WHOLE = 10_000
"""Columns of what is no terminal."""

SECONDS_PER_LINE = 30


def say(text: str, *, style: str | None = None, to_stderr: bool = False) -> None:
    """Print `text` as it is: no markup, and not broken into lines, so that a path can be copied."""
    Console(stderr=to_stderr, highlight=False).print(
        text, style=style, markup=False, soft_wrap=True
    )


def show(table: RenderableType, *, to_stderr: bool = False) -> None:
    """Print a table, in a file or a pipe as wide as it likes to be."""
    console = Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal:
        console.width = WHOLE
    console.print(table)


@contextmanager
def stage_bar() -> Iterator[Advance]:
    """Give a function to call with the stage, the steps done and the steps in all.

    One bar for all stages, with an estimate of the time left, on standard error; it goes at the
    end. What is no terminal is given lines (`stage_lines`).
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield stage_lines()
        return
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def advance(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield advance


@contextmanager
def stage_bars() -> Iterator[Advance]:
    """As `stage_bar`, with a bar and a count for each stage."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield stage_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def stage_lines(clock: Callable[[], float] = time.monotonic) -> Advance:
    """For a log: a line on standard error for a stage that begins, and every half minute in it."""
    shown, when = "", clock()

    def advance(stage: str, done: int, total: int) -> None:
        nonlocal shown, when
        if stage != shown or clock() - when >= SECONDS_PER_LINE:
            shown, when = stage, clock()
            say(f"{stage}: {done} of {total}", to_stderr=True)

    return advance


__all__ = ["Advance", "say", "show", "stage_bar", "stage_bars", "stage_lines"]
