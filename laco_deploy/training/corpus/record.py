"""One sample as every reader gives it, and what is wrong with one that cannot be given."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from laco_runtimes.errors import DataError, ImageError, ImageFileNotFoundError

Fault = Literal[
    "unreadable",
    "dialogue",
    "empty_answer",
    "marker_mismatch",
    "missing_image",
    "broken_image",
    "missing_video",
    "broken_video",
    "too_long",
]
"""What can be wrong with a sample."""

ROLES: Mapping[str, str] = MappingProxyType(
    {
        "human": "human",
        "user": "human",
        "gpt": "gpt",
        "assistant": "gpt",
        "system": "system",
    }
)
"""Names of the speakers as they occur in published data sets."""


def printable(text: Any) -> str:
    """Text that can be printed and written as UTF-8: half a surrogate pair becomes an escape."""
    return str(text).encode("utf-8", "backslashreplace").decode()


class SampleError(DataError):
    """A sample that cannot be used; training skips and counts it.

    Args:
        fault: what kind of defect.
        reason: a sentence for people.
    """

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(printable(reason))
        self.fault: Fault = fault
        self.name = ""
        """Id of the sample, where it could be read."""


@contextmanager
def named(name: Any) -> Iterator[None]:
    """Give a `SampleError` the id of its sample; None is none."""
    try:
        yield
    except SampleError as error:
        error.name = "" if name is None else printable(name)
        raise


@contextmanager
def image_faults() -> Iterator[None]:
    """An image that cannot be read, as `SampleError`."""
    try:
        yield
    except ImageFileNotFoundError as error:
        raise SampleError("missing_image", str(error)) from None
    except ImageError as error:
        raise SampleError("broken_image", str(error)) from None


@dataclass(frozen=True, slots=True)
class Broken:
    """A sample that is skipped, in place of its tensors."""

    name: str
    """Id of the sample, or its place in the file where it has none."""
    source: str
    """Data set it is from."""
    reason: str
    fault: Fault = "unreadable"


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its marks, and the answer to it."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Record:
    """A dialogue with its images or its video, not decoded."""

    name: str
    source: str
    turns: tuple[Turn, ...]
    images: tuple[bytes | Path, ...] = ()
    """Contents of image files, or their paths."""
    video: Path | None = None
    """A video file, or a folder of frames."""
    system: str | None = None
    """The system turn, where the dialogue has its own."""


def parse_dialogue(conversations: Any) -> tuple[str | None, tuple[Turn, ...]]:
    """The system turn, if there is one, and the turns of a dialogue in LLaVA's format.

    Args:
        conversations: list of `{"from": "human" | "gpt", "value": text}`; `role` and `content` with
            `user` and `assistant` are understood as well. An answer before the first question is
            dropped, as LLaVA does (LLaVA-NeXT llava/train/train.py, `preprocess_qwen`).

    Raises:
        SampleError: not such a list, turns that do not alternate, an empty answer, or text that is
            not Unicode.
    """
    if not isinstance(conversations, Sequence) or isinstance(conversations, str | bytes):
        raise SampleError("dialogue", "it has no list of conversations")
    spoken = [_turn(turn) for turn in conversations]
    system = spoken.pop(0)[1] if spoken and spoken[0][0] == "system" else None
    if spoken and spoken[0][0] == "gpt":
        spoken.pop(0)
    if not spoken:
        raise SampleError("dialogue", "its dialogue is empty")
    roles = [role for role, _ in spoken]
    if roles != ["human", "gpt"] * (len(roles) // 2):
        raise SampleError("dialogue", f"its turns do not go human, gpt, ... but {', '.join(roles)}")
    texts = [text for _, text in spoken]
    if not all(answer.strip() for answer in texts[1::2]):
        raise SampleError("empty_answer", "an answer is empty")
    turns = zip(texts[::2], texts[1::2], strict=True)
    return system, tuple(Turn(question, answer) for question, answer in turns)


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise SampleError("dialogue", "a turn is no object with from and value")
    role = ROLES.get(str(turn.get("from", turn.get("role"))))
    text = turn.get("value", turn.get("content"))
    if role is None or not isinstance(text, str):
        raise SampleError("dialogue", f"a turn has no known speaker or no text: {turn!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape
        raise SampleError("dialogue", "a turn is not valid Unicode") from None
    return role, text


def natural_key(name: str) -> list[tuple[int, str]]:
    """Key under which frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


__all__ = [
    "Broken",
    "Fault",
    "Record",
    "SampleError",
    "Turn",
    "image_faults",
    "named",
    "natural_key",
    "parse_dialogue",
]
