"""Dialogues as token ids and labels, as LLaVA-OneVision trains on them.

Formats and masks: LLaVA-NeXT llava/train/train.py (`preprocess_plain`, `preprocess_qwen`,
`preprocess_multimodal`) and llava/conversation.py (`plain`, `qwen_1_5`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tokenizers import Tokenizer

from laco_deploy.model.visual_inputs import IMAGE_MARK, VIDEO_MARK
from laco_deploy.training.corpus.record import Record, SampleError
from laco_deploy.training.dataset import IGNORE_INDEX
from laco_runtimes.errors import ConfigError
from laco_runtimes.prompt import PromptTemplate, chatml, encode_text
from laco_runtimes.tiling import IMAGE_MODES

ANY_MARK = re.compile(f"{IMAGE_MARK}|{VIDEO_MARK}")

Style = Literal["plain", "chat"]
Labelled = tuple[list[int], list[int]]
"""Ids and labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a sample becomes tensors.

    Raises:
        ConfigError: a value that is not possible.
    """

    style: Style = "chat"
    """`plain`: the image, then the answer and a line break, and nothing else, as in stage 1.
    `chat`: ChatML."""
    clean_mask: bool = False
    """Supervise only answers and the token that ends each. By default the rest of an assistant turn
    and every line break and ChatML token of the whole dialogue as well, as LLaVA does."""
    max_length: int = 32768
    """In tokens, visual ones included; what is longer is cut off."""
    image_mode: Literal["square", "anyres"] = "square"
    max_frames: int = 32
    """Of a video; more are thinned out evenly."""
    fps: float = 1.0
    """Frames taken of each second of a video file."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("style", self.style, get_args(Style)),
            ("image_mode", self.image_mode, IMAGE_MODES),
        ):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}. Known: {', '.join(known)}.")
        for name, limit in (("max_length", 2), ("max_frames", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < limit:
                raise ConfigError(f"{name} is {value!r}. Give at least {limit}.")
        if not 0 < self.fps < math.inf:
            raise ConfigError(f"fps is {self.fps!r}. Give a number above 0.")


def visual_marks(record: Record) -> list[list[str]]:
    """The marks of each question in order. `<image>` stands for a video where there is no image.

    Raises:
        SampleError: not as many marks as images and videos, or a mark in an answer.
    """
    marks = [ANY_MARK.findall(turn.question) for turn in record.turns]
    if record.video is not None and not record.images:
        marks = [[VIDEO_MARK] * len(turn) for turn in marks]
    for mark, have in ((IMAGE_MARK, len(record.images)), (VIDEO_MARK, record.video is not None)):
        found = sum(turn.count(mark) for turn in marks)
        if found != have:
            raise SampleError(
                "marker_mismatch",
                f"it has {found} {mark} marks for {int(have)} {mark.strip('<>')}s",
            )
    if any(ANY_MARK.search(turn.answer) for turn in record.turns):
        raise SampleError("marker_mismatch", f"{IMAGE_MARK} or {VIDEO_MARK} stands in an answer")
    return marks


class ChatEncoder:
    """Ids and labels of dialogues. Special tokens are found by name.

    Args:
        tokenizer: with ChatML tokens; text never becomes a special token.
        image_token_id: stands for one visual token.
        options: style, mask and length.
    """

    def __init__(self, tokenizer: Tokenizer, image_token_id: int, options: ChatOptions) -> None:
        self._options = options
        self._serialised = tokenizer.to_str()
        self._image_token_id = image_token_id
        self._prepare()

    def _prepare(self) -> None:
        self._tokenizer = Tokenizer.from_str(self._serialised)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._template: PromptTemplate = chatml(
            self._tokenizer, image_token_id=self._image_token_id
        )
        structural = {self._template.user_open[0], self._template.assistant_close[0]}
        newline = self._text("\n")
        self._structural = structural | (set(newline) if len(newline) == 1 else set())

    def __getstate__(self) -> dict[str, Any]:
        # A pickled Tokenizer forgets `encode_special_tokens`.
        return {
            "_options": self._options,
            "_serialised": self._serialised,
            "_image_token_id": self._image_token_id,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def encode(self, record: Record, visual_tokens: Sequence[int]) -> tuple[Labelled, int]:
        """The whole dialogue, cut at `max_length`, and how many tokens were cut off.

        Args:
            record: with as many marks as images and videos (`visual_marks`).
            visual_tokens: for each mark, the number of its tokens.

        Raises:
            SampleError: visual tokens would be cut off, no answer is left, or the dialogue is none
                that the style has.
        """
        make = self._plain if self._options.style == "plain" else self._chat
        ids, labels = make(record, visual_tokens)
        kept = self._options.max_length
        told = f"it has {len(ids)} tokens, and only {kept} are kept"
        if self._image_token_id in ids[kept:]:
            raise SampleError("too_long", f"{told}: visual tokens would be cut off")
        # The first label is never predicted.
        if all(label == IGNORE_INDEX for label in labels[1:kept]):
            raise SampleError("too_long", f"{told}: nothing would be left to learn")
        return (ids[:kept], labels[:kept]), max(len(ids) - kept, 0)

    def _plain(self, record: Record, visual_tokens: Sequence[int]) -> Labelled:
        if len(record.turns) != 1:
            raise SampleError("dialogue", f"style plain needs one turn, not {len(record.turns)}")
        if not visual_tokens:
            raise SampleError("marker_mismatch", "style plain needs an image")
        visual = [self._image_token_id] * sum(visual_tokens)
        caption = self._text(record.turns[0].answer + "\n")
        return [*visual, *caption], [*[IGNORE_INDEX] * len(visual), *caption]

    def _chat(self, record: Record, visual_tokens: Sequence[int]) -> Labelled:
        ids: list[int] = []
        labels: list[int] = []

        def add(part: Sequence[int], *, is_answer: bool) -> None:
            ids.extend(part)
            labels.extend(part if is_answer else [IGNORE_INDEX] * len(part))

        counts, is_clean = list(visual_tokens), self._options.clean_mask
        close = self._template.assistant_close
        add(self._system(record), is_answer=False)
        for turn in record.turns:
            add(self._template.user_open, is_answer=False)
            add(self._question(turn.question, counts), is_answer=False)
            # <|im_end|>, a line break, and the head of the assistant turn
            opening = self._template.user_close
            add(opening[: len(close)], is_answer=False)
            add(opening[len(close) :], is_answer=not is_clean)
            add([*self._text(turn.answer), close[0]], is_answer=True)
            add(close[1:], is_answer=not is_clean)
        if not is_clean:
            labels = [
                token if token in self._structural else label
                for token, label in zip(ids, labels, strict=True)
            ]
        return ids, labels

    def _system(self, record: Record) -> Sequence[int]:
        if record.system is None:
            return self._template.system
        opening = self._template.user_open[0]
        newline = self._text("\n")
        role = [*self._text("system"), *newline]
        return [opening, *role, *self._text(record.system), *self._template.assistant_close]

    def _question(self, question: str, counts: list[int]) -> list[int]:
        """Ids of a question; takes the counts of its marks off the front of `counts`.

        A mark that is alone in its turn goes to the front, with a line break behind it.
        """
        texts = ANY_MARK.split(question)
        if len(texts) == 2:
            visual = [self._image_token_id] * counts.pop(0)
            text = "".join(texts).strip()
            return [*visual, *self._template.after_image, *self._text(text)]
        ids = self._text(texts[0])
        for text in texts[1:]:
            ids += [self._image_token_id] * counts.pop(0)
            ids += self._text(text)
        return ids

    def _text(self, text: str) -> list[int]:
        return encode_text(self._tokenizer, text)


__all__ = ["IGNORE_INDEX", "ChatEncoder", "ChatOptions", "visual_marks"]
