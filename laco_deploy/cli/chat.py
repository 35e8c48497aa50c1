"""`laco chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from laco_deploy.terminal import say
from laco_runtimes.errors import LacoError
from laco_runtimes.settings import Settings

if TYPE_CHECKING:
    from laco_deploy.cli.dialogue import Dialogue

Paths = Annotated[tuple[Path, ...], Parameter(negative=(), show_default=False)]


def chat(
    engine: Path,
    prompt: str | None = None,
    /,
    *,
    image: Paths = (),
    video: Paths = (),
    fps: float | None = None,
    frames: int | None = None,
    device: str = "auto",
    variant: str = "laco",
    threads: int | None = None,
    public_key: Path | None = None,
    stats: bool = True,
    settings: Annotated[Settings, Parameter(name="*", negative=())] = Settings(),  # noqa: B008
) -> None:
    """Ask about images; without a prompt, ask question after question.

    Examples:

    * `laco chat engine/ --image photo.jpg "What is on the table?"`
    * `laco chat engine/ --image photo.jpg` - a dialogue; `/help` lists its commands
    * `laco chat ckpt/ --image photo.jpg "What is it?"` - a checkpoint, run by PyTorch

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote, or checkpoint folder.
    prompt
        The question. Left out: a dialogue on the terminal, one question per line, ended by an empty
        line. Ctrl-C stops an answer and keeps what there is of it.
    image
        Image file that the first question is about; may be given several times. Left out: text
        only.
    video
        Video file, likewise, after the images.
    fps
        Frames to take of each second of a video.
    frames
        Frames to take of a video instead, spread evenly; 8 if neither is given.
    device
        `auto`, or a device in the engine's own words. An explicit device never falls back.
    variant
        `laco`, or a baseline of the bundle (for latency only).
    threads
        CPU threads per inference; left out, the engine chooses.
    public_key
        PEM file of the key that must have signed the bundle.
    stats
        Print times and token counts behind each answer, on standard error.
    """
    from laco_deploy.cli.dialogue import Dialogue, Shown, read_image
    from laco_runtimes.display import printable
    from laco_runtimes.pipeline import Pipeline
    from laco_runtimes.prompt import load_tokenizer
    from laco_runtimes.video import Video

    def read_video(path: Path) -> Video:
        return Video(path, fps=fps, frames=frames)

    waiting = [
        *(Shown(printable(path.name), read_image(path)) for path in image),
        *(Shown(printable(path.name), read_video(path)) for path in video),
    ]
    if sys.stderr.isatty():
        say(f"loading {engine} ...", style="dim", to_stderr=True)
    dialogue = Dialogue(
        Pipeline(engine, device, variant, threads, public_key),
        settings,
        tokenizer=load_tokenizer(engine / "tokenizer.json"),
        show_stats=stats,
        waiting=waiting,
        read_video=read_video,
    )
    if prompt is None:
        _talk(dialogue)
    else:
        dialogue.ask(prompt)


def _talk(dialogue: Dialogue) -> None:
    from laco_deploy.cli.commands import run_dialogue
    from laco_deploy.cli.dialogue import tell

    if not sys.stdin.isatty():
        run_dialogue(dialogue, (line.rstrip("\n") for line in sys.stdin), _raise)
        return
    tell("/help lists commands, an empty line ends the dialogue")
    run_dialogue(dialogue, _typed(dialogue), _print)


def _typed(dialogue: Dialogue) -> Iterator[str]:
    """Lines from the terminal, behind the names of what the next question is about."""
    console = Console(stderr=True)
    while True:
        names = ", ".join(shown.name for shown in dialogue.waiting)
        try:
            yield console.input(f"{names} > " if names else "> ", markup=False)
        except EOFError:
            return


def _raise(error: LacoError | KeyboardInterrupt) -> None:
    raise error


def _print(error: LacoError | KeyboardInterrupt) -> None:
    dropped = isinstance(error, KeyboardInterrupt)
    say("dropped" if dropped else f"error: {error}", to_stderr=True)


__all__ = ["chat"]
