"""`laco chat`: its options, and the dialogue with its commands."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from laco_deploy.cli import run
from laco_deploy.cli.commands import COMMANDS, run_dialogue, take
from laco_deploy.cli.dialogue import Dialogue, Shown, read_image, token_lines
from laco_runtimes.errors import ArgumentError, ImageError, LacoError
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.prompt import load_tokenizer
from laco_runtimes.settings import Settings
from laco_runtimes.video import Video

if TYPE_CHECKING:
    from tests.bundles import RandomBundles


class Terminal(io.StringIO):
    """Standard output that is a terminal, and that presses Ctrl-C behind its first pieces."""

    def __init__(self, presses: int = 0) -> None:
        super().__init__()
        self._presses = presses

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._presses and text.strip():
            self._presses -= 1
            signal.raise_signal(signal.SIGINT)
        return written


def laco(*arguments: str | Path) -> int:
    return run([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(bundle_for: RandomBundles) -> Path:
    """A model whose words mean nothing and that does not stop by itself."""
    return bundle_for.checkpoint


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return Pipeline(checkpoint, "cpu")


@pytest.fixture
def dialogue(pipeline: Pipeline, checkpoint: Path) -> Dialogue:
    pipeline.forget()  # what other tests asked
    tokenizer = load_tokenizer(checkpoint / "tokenizer.json")
    return Dialogue(
        pipeline, Settings(max_new_tokens=6), tokenizer, read_video=lambda path: Video(path)
    )


@pytest.fixture
def handler() -> Iterator[object]:
    """Ctrl-C as in a terminal: workers of xdist, and jobs in the background, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red barn.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `Pipeline.stream` was given; the requests are then refused."""
    calls: list[dict[str, Any]] = []

    def stream(self: Pipeline, images: object, prompt: str, **keywords: Any) -> None:
        calls.append({"images": images, "prompt": prompt, **keywords})
        raise ArgumentError("enough. This is a test.")

    monkeypatch.setattr(Pipeline, "stream", stream)
    return calls


GIVEN = {
    "max_new_tokens": 7,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.9,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "seed": 11,
    "stop": ("a b", "c"),
    "logprobs": 2,
}


def test_every_setting_is_an_option_and_reaches_the_request(
    checkpoint: Path, asked: list[dict[str, Any]]
) -> None:
    options = []
    for name, value in GIVEN.items():
        for one in value if isinstance(value, tuple) else (value,):
            options += [f"--{name.replace('_', '-')}", str(one)]
    assert laco("chat", checkpoint, "Hello", *options) == 2
    assert laco("chat", checkpoint, "Hello", "--prompt-lookup", "4") == 2
    assert asked[0].items() >= GIVEN.items()
    assert asked[1]["prompt_lookup"] == 4
    assert {one.name for one in fields(Settings)} == {*GIVEN, "prompt_lookup"}
    defaults = {one.name: getattr(Settings(), one.name) for one in fields(Settings)}
    assert asked[1].items() >= {**defaults, "prompt_lookup": 4}.items()


def test_images_and_videos_of_the_command_line_are_in_the_first_question_in_their_order(
    checkpoint: Path, image: Path, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    clip = tmp_path / "clip.mp4"
    options = ("--image", image, "--image", image, "--video", clip, "--frames", "3")
    assert laco("chat", checkpoint, "Hello", *options) == 2
    first, second, video = asked[0]["images"]
    assert (first, second) == (image, image)
    assert (video.source, video.frames) == (clip, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", "3"], "top_p is 3.0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--video", "a.mp4", "--fps", "1", "--frames", "2"], "fps"),
        (["--temperature", "warm"], "warm"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_an_option_out_of_range_ends_with_code_2(
    checkpoint: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laco("chat", checkpoint, "Hello", *options) == 2
    assert message in capsys.readouterr().err


def test_a_question_knows_what_was_said_before_and_the_image_is_encoded_once(
    dialogue: Dialogue, image: Path
) -> None:
    dialogue.show(str(image), read_image)
    dialogue.ask("What is it?")
    dialogue.ask("And where?")
    first, second = (exchange.reply for exchange in dialogue.exchanges)
    assert first.visual_tokens == second.visual_tokens == 16
    assert second.cached_tokens >= first.prompt_tokens
    assert [turn.prompt for turn in dialogue.history.turns] == ["What is it?", "And where?"]


def test_each_turn_ends_with_a_line_of_times_behind_the_names_of_its_images(
    dialogue: Dialogue, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogue.show(str(image), read_image)
    dialogue.ask("What is it?")
    dialogue.ask("And where?")
    answers, lines = capsys.readouterr()
    first, second = (exchange.reply for exchange in dialogue.exchanges)
    assert answers == f"{first.text}\n{second.text}\n"
    assert lines.splitlines() == [f"red barn.png: {first.summary()}", second.summary()]
    assert re.search(
        r"image \d+ ms, 16 visual of \d+ prompt tokens, first token after \d+ ms, "
        r"[\d.]+ ms per token after it, [\d.]+ tokens/s in all, 6 new tokens",
        lines,
    )


def test_a_line_is_a_question_unless_a_slash_begins_it(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    monkeypatch.setattr(Dialogue, "ask", lambda self, prompt: questions.append(prompt))
    assert take(dialogue, "What is it?")
    assert take(dialogue, " /etc/passwd is what?")
    assert questions == ["What is it?", "/etc/passwd is what?"]
    with pytest.raises(ArgumentError, match=r"no command '/etc/passwd'.*/image, /video"):
        take(dialogue, "/etc/passwd is what?")


def test_an_unknown_command_cannot_write_to_the_terminal(dialogue: Dialogue) -> None:
    with pytest.raises(ArgumentError) as caught:
        take(dialogue, "/\x1b[2J")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("form", ["{}", "'{}'", '"{}"'])
def test_image_shows_a_file_before_the_next_question_by_name(
    dialogue: Dialogue, image: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    take(dialogue, f"/image {form.format(image)}")
    assert [shown.name for shown in dialogue.waiting] == ["red barn.png"]
    assert "for the next question: red barn.png" in capsys.readouterr().err
    dialogue.ask("What is it?")
    assert dialogue.waiting == []
    take(dialogue, "/image")
    shown = capsys.readouterr().err
    assert "for the next question: nothing new" in shown
    assert "from before: red barn.png" in shown


def test_image_refuses_what_is_no_image_at_once(dialogue: Dialogue, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("hello")
    with pytest.raises(ImageError, match="not an image"):
        take(dialogue, f"/image {tmp_path / 'no.png'}")
    with pytest.raises(ImageError, match="no image file"):
        take(dialogue, f"/image {tmp_path / 'lost.png'}")
    assert dialogue.waiting == []


def test_an_image_that_fails_later_is_not_asked_about_again(
    dialogue: Dialogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogue.waiting.append(Shown("gone.png", tmp_path / "gone.png"))
    with pytest.raises(ImageError):
        dialogue.ask("What is it?")
    assert dialogue.waiting == []
    assert capsys.readouterr().out == "", "no answer, not even an empty line"
    dialogue.ask("And now?")
    assert len(dialogue.history) == 1


def test_video_shows_frames(dialogue: Dialogue, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (40 * index, 0, 0)) for index in range(4)]
    clip = tmp_path / "clip.gif"
    frames[0].save(clip, save_all=True, append_images=frames[1:])
    take(dialogue, f"/video {clip}")
    [shown] = dialogue.waiting
    assert isinstance(shown.source, Video)
    assert shown.name == "clip.gif"


def test_reset_forgets_turns_and_images(dialogue: Dialogue, image: Path) -> None:
    take(dialogue, f"/image {image}")
    dialogue.ask("What is it?")
    take(dialogue, f"/image {image}")
    take(dialogue, "/reset")
    assert (dialogue.names, dialogue.waiting, len(dialogue.history)) == ([], [], 0)
    dialogue.ask("What is it?")
    assert dialogue.exchanges[-1].reply.visual_tokens == 0


def test_stats_count_turns_tokens_and_images(
    dialogue: Dialogue, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take(dialogue, "/stats")
    assert "0 turns" in capsys.readouterr().err
    take(dialogue, f"/image {image}")
    for prompt in ("What is it?", "Where?"):
        dialogue.ask(prompt)
    capsys.readouterr()
    take(dialogue, "/stats")
    shown = capsys.readouterr().err
    assert shown.startswith("torch on cpu: ")
    assert f"2 turns, 2 of them remembered in {dialogue.history.tokens} of " in shown
    assert "images: red barn.png" in shown
    assert "12 new tokens" in shown


def test_names_of_images_follow_the_history_when_it_loses_some(
    dialogue: Dialogue, image: Path, tmp_path: Path
) -> None:
    other = tmp_path / "blue.png"
    Image.new("RGB", (60, 60), (0, 0, 200)).save(other)
    for path in (image, other):
        dialogue.show(str(path), read_image)
        dialogue.ask("What is it?")
    assert dialogue.names == ["red barn.png", "blue.png"]
    dialogue.history.entries = dialogue.history.entries[1:]  # as an overflow with many images does
    assert dialogue.names == ["blue.png"]


def test_save_writes_markdown_in_which_nothing_runs(
    dialogue: Dialogue, image: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.md"
    take(dialogue, f"/image {image}")
    dialogue.ask("Is it <script>alert(1)</script> or ![x](http://192.0.2.1/)?")
    take(dialogue, f"/save {file}")
    text = file.read_text()
    assert text.startswith("# Dialogue\n\n**Question (red barn.png):** Is it")
    assert "<script>" not in text
    assert "](" not in text


def test_save_as_json_is_taken_up_by_new_history(
    dialogue: Dialogue, pipeline: Pipeline, image: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    take(dialogue, f"/image {image}")
    dialogue.ask("What is it?")
    take(dialogue, f"/save {file}")
    assert json.loads(file.read_text())["turns"][0]["prompt"] == "What is it?"
    assert pipeline.new_history(file.read_text(), image).turns == dialogue.history.turns


def test_save_writes_over_its_own_file_and_no_other(dialogue: Dialogue, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.md", tmp_path / "other.md"
    other.write_text("mine")
    with pytest.raises(ArgumentError, match="nothing was said"):
        take(dialogue, f"/save {mine}")
    dialogue.ask("What is it?")
    take(dialogue, f"/save {mine}")
    dialogue.ask("And where?")
    take(dialogue, f"/save {mine}")
    assert "And where?" in mine.read_text()
    for path, message in (
        (other, "exists"),
        (tmp_path / "talk.doc", "one of: .md, .json"),
        (tmp_path / "no" / "talk.md", "cannot be written"),
    ):
        with pytest.raises(ArgumentError, match=message):
            take(dialogue, f"/save {path}")
    assert other.read_text() == "mine"


def test_help_lists_every_command(dialogue: Dialogue, capsys: pytest.CaptureFixture[str]) -> None:
    take(dialogue, "/help")
    shown = capsys.readouterr().err
    assert all(f"/{name}" in shown for name in COMMANDS)


def test_the_dialogue_ends_at_an_empty_line_and_at_quit(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    monkeypatch.setattr(Dialogue, "ask", lambda self, prompt: questions.append(prompt))

    def fail(error: LacoError | KeyboardInterrupt) -> None:
        raise error

    run_dialogue(dialogue, ["one", "", "two"], fail)
    run_dialogue(dialogue, ["three", "/quit", "four"], fail)
    assert questions == ["one", "three"]


def test_ctrl_c_keeps_the_answer_so_far(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch, handler: object
) -> None:
    monkeypatch.setattr("sys.stdout", Terminal(presses=1))
    dialogue.settings = Settings(max_new_tokens=60)
    dialogue.ask("What is it?")
    reply = dialogue.exchanges[-1].reply
    assert reply.stop_reason == "stopped"
    assert 0 < reply.new_tokens < 60
    assert dialogue.history.turns[-1].reply == reply.text
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_drops_the_turn(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch, handler: object
) -> None:
    class Impatient(Terminal):
        def write(self, text: str) -> int:
            if text.strip():
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    monkeypatch.setattr("sys.stdout", Impatient())
    dialogue.settings = Settings(max_new_tokens=60)
    with pytest.raises(KeyboardInterrupt):
        dialogue.ask("What is it?")
    assert len(dialogue.history) == 0
    assert dialogue.exchanges == []
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.setattr("sys.stdout", Terminal())
    dialogue.ask("What is it?")
    assert len(dialogue.history) == 1


def test_a_dialogue_goes_on_after_a_dropped_answer_where_its_owner_lets_it(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Dialogue, prompt: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Dialogue, "ask", interrupted)
    errors: list[object] = []
    run_dialogue(dialogue, ["one", "two", "/quit", "three"], errors.append)
    assert [type(error) for error in errors] == [KeyboardInterrupt, KeyboardInterrupt]


def test_escape_sequences_of_an_answer_do_not_reach_a_terminal(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = dialogue.pipeline.chat(None, "What?", max_new_tokens=1)

    class Hostile:
        def __init__(self) -> None:
            self.reply = reply
            self._pieces = iter(["red\x1b]0;owned\x07", "\x9b2J\n"])

        def __enter__(self) -> Hostile:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to close."""

        def __iter__(self) -> Iterator[str]:
            return self._pieces

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr(Pipeline, "stream", lambda *_, **__: Hostile())
    dialogue.ask("What is it?")
    assert terminal.getvalue().startswith("red\N{REPLACEMENT CHARACTER}]0;owned")
    assert not set("\x1b\x07\x9b") & set(terminal.getvalue())


def test_log_probabilities_are_shown_token_by_token(
    dialogue: Dialogue, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogue.settings = Settings(max_new_tokens=3, logprobs=2)
    dialogue.ask("What is it?")
    reply = dialogue.exchanges[-1].reply
    lines = list(token_lines(reply, dialogue.tokenizer))
    assert len(lines) == 3
    assert reply.logprobs is not None
    for line, token in zip(lines, reply.logprobs, strict=True):
        assert float(line.split()[0]) == pytest.approx(token.logprob, abs=0.006)
        assert repr(dialogue.tokenizer.decode([token.id], skip_special_tokens=False)) in line
    assert lines[0] in capsys.readouterr().err


def test_a_terminal_shows_errors_and_goes_on_and_a_pipe_ends(
    checkpoint: Path,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = iter(["/nope", "What is it?", "/quit"])
    labels: list[str] = []

    def ask_for_a_line(self: object, label: str, **_: object) -> str:
        labels.append(label)
        return next(typed)

    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("rich.console.Console.input", ask_for_a_line)
    monkeypatch.setattr("sys.stdin", Keyboard())
    assert laco("chat", checkpoint, "--image", image, "--max-new-tokens", "2") == 0
    shown = capsys.readouterr()
    assert "error: there is no command '/nope'" in shown.err
    assert len(shown.out.splitlines()) >= 1
    assert labels == ["red barn.png > ", "red barn.png > ", "> "]

    monkeypatch.setattr("sys.stdin", io.StringIO("/nope\nWhat is it?\n"))
    assert laco("chat", checkpoint) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no command '/nope'" in shown.err
