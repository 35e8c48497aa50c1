"""What every command prints alike: whole lines, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

WHOLE = 10_000
"""Columns of what is no terminal."""


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
def stage_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function to call with the stage, the steps done and the steps in all.

    The bar, with an estimate of the time left, is on standard error and goes at the end.
    """
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def advance(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield advance


__all__ = ["say", "show", "stage_bar"]
