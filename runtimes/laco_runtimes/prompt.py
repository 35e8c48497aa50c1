"""A chat prompt as token ids: fixed segments, image tokens, and user text that stays text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tokenizers import Tokenizer

from laco_runtimes.errors import ArgumentError, BundleError

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system turn LLaVA-OneVision trains with (LLaVA-NeXT llava/conversation.py, `qwen_1_5`)."""

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """ChatML, frozen to token ids so that no template engine runs on the device."""

    system: Ids
    """Start of a dialogue: the whole system turn."""
    user_open: Ids
    after_image: Ids
    """Between an image's visual tokens and the text of its turn."""
    user_close: Ids
    """End of the user's turn and start of the assistant's."""
    assistant_close: Ids
    """Stands behind an answer before the next user turn."""
    stop: Annotated[Ids, Field(min_length=1)]
    """Ids that end an answer."""
    image_token_id: Annotated[int, Field(ge=0)]

    def turn(self, text: Sequence[int], image_tokens: Sequence[int] = ()) -> list[int]:
        """Ids of one user turn up to where the answer begins.

        Args:
            text: ids of the user's words.
            image_tokens: for each image, its number of visual tokens.
        """
        ids = list(self.user_open)
        for count in image_tokens:
            ids += [self.image_token_id] * count
            ids += self.after_image
        return [*ids, *text, *self.user_close]


def load_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json` so that user text can never become a special token.

    Raises:
        BundleError: the file is not a tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:  # a Rust panic is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise BundleError(
            f"'{path}' cannot be read as a tokenizer. Export the model again."
        ) from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of plain text; special tokens spelled out in it are encoded letter by letter."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def check_prompt(text: str) -> str:
    """Return `text` when there is something to ask.

    Raises:
        ArgumentError: empty, only white space, not a string, or not Unicode.
    """
    if not isinstance(text, str):
        raise ArgumentError(f"the prompt is {type(text).__name__}, not text. Give a string.")
    if not text.strip():
        raise ArgumentError("the prompt is empty. Ask something about the image.")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as a terminal of another encoding gives
        raise ArgumentError("the prompt is not valid Unicode. Type it again as UTF-8.") from None
    return text


def chatml(
    tokenizer: Tokenizer, *, image_token_id: int, system: str = DEFAULT_SYSTEM
) -> PromptTemplate:
    """Freeze ChatML for a tokenizer of the Qwen family.

    Raises:
        BundleError: a ChatML token is missing from the vocabulary.
    """

    def special(token: str) -> int:
        index = tokenizer.token_to_id(token)
        if index is None:
            raise BundleError(
                f"the tokenizer has no {token} token. Use a tokenizer of the Qwen family."
            )
        return int(index)

    start, end = special("<|im_start|>"), special("<|im_end|>")
    newline = encode_text(tokenizer, "\n")
    stops = [end, tokenizer.token_to_id("<|endoftext|>")]

    def opening(role: str) -> list[int]:
        return [start, *encode_text(tokenizer, role), *newline]

    return PromptTemplate(
        system=(*opening("system"), *encode_text(tokenizer, system), end, *newline),
        user_open=tuple(opening("user")),
        after_image=tuple(newline),
        user_close=(end, *newline, *opening("assistant")),
        assistant_close=(end, *newline),
        stop=tuple(index for index in stops if index is not None),
        image_token_id=image_token_id,
    )


__all__ = [
    "DEFAULT_SYSTEM",
    "PromptTemplate",
    "chatml",
    "check_prompt",
    "encode_text",
    "load_tokenizer",
]
