"""What lines of a dialogue do: a question, or a command that begins with a slash."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from laco_deploy.cli.dialogue import Dialogue, read_image, tell
from laco_runtimes.display import inert_markdown, printable
from laco_runtimes.errors import ArgumentError, LacoError


def run_dialogue(
    dialogue: Dialogue,
    lines: Iterable[str],
    on_error: Callable[[LacoError | KeyboardInterrupt], None],
) -> None:
    """Take lines until one is empty or ends the dialogue.

    Args:
        dialogue: answers them.
        lines: without their ends.
        on_error: given each error of a line, and Ctrl-C where it dropped an answer; raises it, or
            the dialogue goes on.
    """
    for line in lines:
        if not line.strip():
            return
        try:
            if not take(dialogue, line):
                return
        except (LacoError, KeyboardInterrupt) as error:
            on_error(error)


def take(dialogue: Dialogue, line: str) -> bool:
    """Ask a line, or do what its command says; False where it ends the dialogue.

    Raises:
        ArgumentError: an unknown command, or one that cannot be done.
        LacoError: as `Pipeline.chat`.
    """
    if not line.startswith("/"):
        dialogue.ask(line.strip())
        return True
    name, _, argument = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        raise ArgumentError(
            f"there is no command '/{printable(name)}'. Choose one of: "
            f"{', '.join(f'/{known}' for known in COMMANDS)}; or, for a question that begins with "
            "a slash, put a blank in front."
        )
    return COMMANDS[name].do(dialogue, argument.strip())


def as_markdown(dialogue: Dialogue) -> str:
    """All that was said, to be read; what a model says stays text."""
    parts = ["# Dialogue", ""]
    for exchange in dialogue.exchanges:
        seen = f" ({', '.join(map(inert_markdown, exchange.names))})" if exchange.names else ""
        parts += [f"**Question{seen}:** {inert_markdown(exchange.prompt)}", ""]
        parts += [inert_markdown(exchange.reply.text.strip()), ""]
    return "\n".join(parts)


FORMATS: dict[str, Callable[[Dialogue], str]] = {
    ".md": as_markdown,
    ".json": lambda dialogue: dialogue.history.to_json(),
}
"""Formats of `/save` by suffix; JSON is for `Pipeline.new_history`."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a line that begins with a slash does."""

    argument: str
    help: str
    do: Callable[[Dialogue, str], bool]
    """Whether the dialogue goes on."""


def _image(dialogue: Dialogue, path: str) -> bool:
    if path:
        dialogue.show(path, read_image)
    return _list_images(dialogue)


def _video(dialogue: Dialogue, path: str) -> bool:
    if path and dialogue.read_video is not None:
        dialogue.show(path, dialogue.read_video)
    return _list_images(dialogue)


def _list_images(dialogue: Dialogue) -> bool:
    waiting = [shown.name for shown in dialogue.waiting]
    tell(f"for the next question: {', '.join(waiting) or 'nothing new'}")
    if names := dialogue.names:
        tell(f"from before: {', '.join(names)}")
    return True


def _reset(dialogue: Dialogue, argument: str) -> bool:
    dialogue.reset()
    tell("all forgotten, images too")
    return True


def _stats(dialogue: Dialogue, argument: str) -> bool:
    tell(*dialogue.stats())
    return True


def _save(dialogue: Dialogue, path: str) -> bool:
    file = dialogue.save(path, FORMATS)
    tell(f"saved {len(dialogue.exchanges)} turns to {file}")
    return True


def _help(dialogue: Dialogue, argument: str) -> bool:
    rows = [(f"/{name} {command.argument}", command.help) for name, command in COMMANDS.items()]
    width = max(len(name) for name, _ in rows)
    tell(*(f"{name:<{width}}  {text}" for name, text in rows))
    return True


COMMANDS: dict[str, Command] = {
    "image": Command("path", "show an image before the next question; alone: list them", _image),
    "video": Command("path", "show a video before the next question", _video),
    "reset": Command("", "forget the dialogue and its images", _reset),
    "stats": Command("", "engine, tokens of the dialogue, times", _stats),
    "save": Command("file", "write the dialogue to a file, .md or .json", _save),
    "help": Command("", "this list", _help),
    "quit": Command("", "end; so does an empty line, and Ctrl-C stops an answer", lambda *_: False),
}
"""Commands by name."""


__all__ = ["COMMANDS", "FORMATS", "Command", "run_dialogue", "take"]
