"""`laco chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from laco_deploy.terminal import say
from laco_runtimes.errors import LacoError

if TYPE_CHECKING:
    from laco_runtimes.pipeline import Pipeline


def chat(
    engine: Path,
    prompt: str | None = None,
    /,
    *,
    image: Path | None = None,
    device: str = "auto",
    variant: str = "laco",
    max_new_tokens: int = 128,
    threads: int | None = None,
    stats: bool = True,
) -> None:
    """Ask about an image; without a prompt, ask question after question.

    Example: `laco chat engine/ --image photo.jpg "What is on the table?"`

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote.
    prompt
        The question. Left out: a dialogue on the terminal, one question per line about the same
        image, ended by an empty line.
    image
        Image file. Left out: text only.
    device
        `auto`, or a device in the engine's own words. An explicit device never falls back.
    variant
        `laco`, or a baseline of the bundle (for latency only).
    max_new_tokens
        Longest answer, in tokens.
    threads
        CPU threads per inference; left out, the engine chooses.
    stats
        Print times and token counts behind the answer, on standard error.
    """
    from laco_runtimes.pipeline import Pipeline

    pipeline = Pipeline(engine, device=device, variant=variant, threads=threads)
    if prompt is not None:
        _ask(pipeline, image, prompt, max_new_tokens, stats)
        return
    console = Console(stderr=True)
    while True:
        try:
            line = console.input("[bold]> [/]") if sys.stdin.isatty() else input()
        except EOFError:
            return
        if not line.strip():
            return
        try:
            _ask(pipeline, image, line, max_new_tokens, stats)
        except LacoError as error:
            if not sys.stdin.isatty():
                raise
            say(f"error: {error}", to_stderr=True)


def _ask(
    pipeline: Pipeline, image: Path | None, prompt: str, max_new_tokens: int, stats: bool
) -> None:
    stream = pipeline.stream(image, prompt, max_new_tokens=max_new_tokens)
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if stats:
        say(stream.reply.summary(), style="dim", to_stderr=True)


__all__ = ["chat"]
