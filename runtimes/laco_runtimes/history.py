"""A dialogue of several turns, as its owner holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from laco_runtimes.context import Turn, Visual, dialogue_length
from laco_runtimes.encoding import ImageReader
from laco_runtimes.errors import ArgumentError
from laco_runtimes.prompt import PromptTemplate, encode_text
from laco_runtimes.visual import VisualSource

HISTORY_VERSION: Final = 1
MAX_HISTORY_CHARACTERS = 64_000_000

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTurn:
    """One turn of a dialogue, to be shown."""

    prompt: str
    reply: str
    images: int
    """Images and videos that stand in the turn, those it inherited among them."""


class History:
    """A dialogue; made by `Pipeline.new_history` and given to each `chat` of it.

    An answer that ends or is stopped is added as a turn; one that is cancelled or fails leaves the
    history as it was. Images are kept as visual tokens and are not encoded again.

    A dialogue that outgrows the model's context loses whole turns, the oldest first, until the new
    question and its answer have room (`max_new_tokens`, at most a quarter of the context). Images
    of a lost turn stay: they move to the oldest turn that is left. Only where the images themselves
    leave no room do the oldest of them go. A question that is too long by itself is an error.

    Dialogues may take turns on one pipeline, also from several threads.
    """

    def __init__(self, template: PromptTemplate, owner: object, turns: Sequence[Turn] = ()) -> None:
        self._template = template
        self.owner = owner
        """The pipeline that made it."""
        self.entries: tuple[Turn, ...] = tuple(turns)
        """Turns as a pipeline needs them."""

    @property
    def turns(self) -> tuple[PastTurn, ...]:
        """What was said, oldest first."""
        return tuple(
            PastTurn(prompt=turn.prompt, reply=turn.reply, images=len(turn.visuals))
            for turn in self.entries
        )

    @property
    def tokens(self) -> int:
        """Tokens the dialogue takes in the context, visual ones and the system turn among them."""
        return dialogue_length(self._template, self.entries, None)

    def clear(self) -> None:
        """Forget all turns and their images."""
        self.entries = ()

    def to_json(self) -> str:
        """Texts of the dialogue and digests of its images, for `Pipeline.new_history`."""
        turns = [
            _SavedTurn(
                prompt=turn.prompt,
                reply=turn.reply,
                images=tuple(visual.digest.hex() for visual in turn.visuals),
            )
            for turn in self.entries
        ]
        return _SavedHistory(version=HISTORY_VERSION, turns=tuple(turns)).model_dump_json(indent=1)

    def __len__(self) -> int:
        return len(self.entries)

    def __bool__(self) -> bool:
        return True  # an empty dialogue is one, also for `history or pipeline.new_history()`

    def __repr__(self) -> str:
        return f"<History of {len(self)} turns, {self.tokens} tokens>"


class _SavedTurn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    reply: str
    images: tuple[Digest, ...] = ()


class _SavedHistory(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    turns: tuple[_SavedTurn, ...]


def restore_turns(
    saved: str, images: Sequence[VisualSource], reader: ImageReader, tokenizer: Tokenizer
) -> list[Turn]:
    """The turns of a saved dialogue, with the visual tokens of its images.

    Args:
        saved: what `History.to_json` returned.
        images: of the dialogue, in any order.
        reader: of the pipeline that is to continue it.
        tokenizer: of that pipeline.

    Raises:
        ArgumentError: `saved` is something else, or an image of it is neither given nor cached.
        ImageError: an image that cannot be read.
        EngineError: the encoder failed.
    """
    turns = _read_saved(saved)
    wanted = {bytes.fromhex(digest) for turn in turns for digest in turn.images}
    # An image that stood alone in its dialogue may have been cut into tiles.
    read = [
        part
        for alone in (True, False)
        for source in images
        for part in reader.read([source], alone=alone)
    ]
    known = {digest: reader.known(digest) for digest in wanted}
    known |= reader.encode([part for part in read if part.digest in wanted])

    def visual(digest: bytes) -> Visual:
        features = known[digest]
        if features is None:
            raise ArgumentError(
                "the saved history holds an image that is not among those given. Give the images "
                "of the dialogue again, to the same model."
            )
        return Visual(digest=digest, tokens=len(features), features=features)

    return [
        Turn(
            prompt=turn.prompt,
            prompt_ids=tuple(encode_text(tokenizer, turn.prompt)),
            visuals=tuple(visual(bytes.fromhex(digest)) for digest in turn.images),
            reply=turn.reply,
            reply_ids=tuple(encode_text(tokenizer, turn.reply)),
        )
        for turn in turns
    ]


def _read_saved(saved: str) -> tuple[_SavedTurn, ...]:
    try:
        if len(saved) > MAX_HISTORY_CHARACTERS:
            raise ValueError("too long")
        return _SavedHistory.model_validate_json(saved).turns
    except (ValidationError, ValueError, TypeError):
        raise ArgumentError(
            "the saved history cannot be read. Give the text that History.to_json returned."
        ) from None


__all__ = ["History", "PastTurn", "restore_turns"]
