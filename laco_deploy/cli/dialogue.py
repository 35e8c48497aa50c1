"""The dialogue of `laco chat`: questions, answers as they come, and what is known about them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import TYPE_CHECKING, cast

from laco_deploy.terminal import say
from laco_runtimes.display import printable
from laco_runtimes.errors import ArgumentError, ImageError, MissingPackageError
from laco_runtimes.images import load_image
from laco_runtimes.replace import write_atomic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from laco_runtimes.history import History
    from laco_runtimes.keywords import SettingsKeywords
    from laco_runtimes.pipeline import Pipeline
    from laco_runtimes.reply import Reply
    from laco_runtimes.settings import Settings
    from laco_runtimes.visual import VisualSource


@dataclass(frozen=True, slots=True)
class Shown:
    """An image or a video, and the name it goes by."""

    name: str
    source: VisualSource


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer, as they are saved."""

    names: tuple[str, ...]
    prompt: str
    reply: Reply


@dataclass(slots=True)
class Dialogue:
    """Questions to one pipeline, each with what was said before.

    Answers go to standard output, and everything else to standard error.
    """

    pipeline: Pipeline
    settings: Settings
    tokenizer: Tokenizer
    """For tokens that are shown one by one."""
    show_stats: bool = True
    waiting: list[Shown] = field(default_factory=list)
    """What the next question is about, besides what it was about before."""
    read_video: Callable[[Path], VisualSource] | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    history: History = field(init=False)
    _saved: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.history = self.pipeline.new_history()

    @property
    def names(self) -> list[str]:
        """Images that the model still sees, oldest first."""
        seen = [name for exchange in self.exchanges for name in exchange.names]
        count = sum(turn.images for turn in self.history.turns)
        return seen[len(seen) - count :]

    def ask(self, prompt: str) -> None:
        """Ask about the images that wait and all before, and print the answer as it comes.

        The first Ctrl-C keeps the answer so far, a second one drops it.
        """
        try:
            reply = self._answer(prompt)
        except (ImageError, MissingPackageError):
            self.waiting.clear()  # or the next question would fail as well
            raise
        names = tuple(shown.name for shown in self.waiting)
        self.exchanges.append(Exchange(names, prompt, reply))
        self.waiting.clear()
        if self.settings.logprobs is not None:
            tell(*token_lines(reply, self.tokenizer))
        if self.show_stats:
            tell(f"{', '.join(names)}: {reply.summary()}" if names else reply.summary())

    def _answer(self, prompt: str) -> Reply:
        sources = [shown.source for shown in self.waiting]
        settings = cast("SettingsKeywords", asdict(self.settings))
        shows_escapes = sys.stdout.isatty()
        with self.pipeline.stream(
            sources or None, prompt, history=self.history, **settings
        ) as stream:
            begun = False
            try:
                with _first_ctrl_c() as pressed:
                    for piece in stream:
                        begun = True
                        sys.stdout.write(printable(piece) if shows_escapes else piece)
                        sys.stdout.flush()
                        if pressed.is_set():
                            stream.stop()  # what it still held back comes next
            except BaseException:
                if begun:
                    sys.stdout.write("\n")
                raise
            sys.stdout.write("\n")
            return stream.reply

    def show(self, path: str, read: Callable[[Path], VisualSource]) -> None:
        """Put an image or a video before the next question."""
        if path[:1] in ("'", '"') and path[-1:] == path[:1]:  # as terminals paste it
            path = path[1:-1]
        file = Path(path).expanduser()
        self.waiting.append(Shown(printable(file.name), read(file)))

    def save(self, path: str, formats: Mapping[str, Callable[[Dialogue], str]]) -> Path:
        """Write the dialogue to a file, in the format of its suffix.

        Args:
            path: of the file; one that was not saved by this dialogue is not written over.
            formats: by suffix.

        Raises:
            ArgumentError: another suffix, nothing to save, or a file that is there already.
        """
        file = Path(path).expanduser()
        if file.suffix not in formats:
            raise ArgumentError(
                f"a dialogue is saved as one of: {', '.join(formats)}. Say /save talk.md"
            )
        if not self.exchanges:
            raise ArgumentError("nothing was said yet. Ask a question first.")
        if file.exists() and file.resolve() not in self._saved:
            raise ArgumentError(f"'{file}' exists. Choose another name.")
        try:
            write_atomic(file, formats[file.suffix](self).encode())
        except OSError as error:
            raise ArgumentError(
                f"'{file}' cannot be written: {error.strerror}. Choose another place."
            ) from error
        self._saved.add(file.resolve())
        return file

    def reset(self) -> None:
        """Forget all that was said, and the images."""
        self.history.clear()
        self.exchanges.clear()
        self.waiting.clear()

    def stats(self) -> Iterator[str]:
        """Lines about the engine, the dialogue and its times."""
        info, cache = self.pipeline.info, self.pipeline.feature_cache
        yield f"{info.engine} on {info.device}: {info.reason}"
        yield (
            f"{len(self.exchanges)} turns, {len(self.history)} of them remembered in "
            f"{self.history.tokens} of {info.context} tokens; images: "
            f"{', '.join(self.names) or 'none'}"
        )
        yield (
            f"{len(cache)} images kept encoded in {cache.bytes / 1e6:.2f} MB, encoded "
            f"{cache.misses} times, found {cache.hits} times"
        )
        if self.exchanges:
            replies = [exchange.reply for exchange in self.exchanges]
            first = fmean(reply.timings.ttft_ms for reply in replies)
            speed = fmean(reply.timings.tokens_per_second for reply in replies)
            count = sum(reply.new_tokens for reply in replies)
            yield (
                f"{count} new tokens, first one after {first:.0f} ms and {speed:.1f} tokens/s in "
                "all, on average"
            )


def tell(*lines: str) -> None:
    """Lines that are no answer."""
    for line in lines:
        say(line, style="dim", to_stderr=True)


def read_image(path: Path) -> VisualSource:
    """An image file, looked at at once, so that a wrong one is told before the question."""
    load_image(path)
    return path


def token_lines(reply: Reply, tokenizer: Tokenizer) -> Iterator[str]:
    """Each token of a reply with its log-probability, and the likeliest ones in its place."""

    def text(token: int) -> str:
        return printable(repr(tokenizer.decode([token], skip_special_tokens=False)))

    for token in reply.logprobs or ():
        others = "  ".join(f"{text(one)} {value:.2f}" for one, value in token.alternatives or ())
        yield f"{token.logprob:8.2f}  {text(token.id):<16}  {others}".rstrip()


@contextmanager
def _first_ctrl_c() -> Iterator[threading.Event]:
    """While this is open, the first Ctrl-C sets the event; a second one interrupts as ever."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # only the main thread is told of signals
        return

    def press(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = ["Dialogue", "Exchange", "Shown", "read_image", "tell", "token_lines"]
