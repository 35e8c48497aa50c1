"""A dialogue as one prompt: its turns laid out, and what goes when they outgrow the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from laco_runtimes.engines.base import Floats
from laco_runtimes.errors import ContextLengthError, EngineError
from laco_runtimes.kv_state import Slot
from laco_runtimes.prompt import PromptTemplate

ANSWER_SHARE = 4
"""Turns make way for an answer of `max_new_tokens`, but of at most this part of the context."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visual:
    """An image or a video in a dialogue."""

    digest: bytes
    tokens: int
    features: Floats | None
    """[tokens, D]; None before it is encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question with its images, and its answer."""

    prompt: str
    prompt_ids: tuple[int, ...]
    """Ids of the user's words."""
    visuals: tuple[Visual, ...] = ()
    reply: str = ""
    reply_ids: tuple[int, ...] = ()
    """Ids of the answer without the one that ended it."""

    def length(self, template: PromptTemplate, *, answered: bool) -> int:
        """Tokens of the turn, up to where its answer begins or the next turn does."""
        seen = [visual.tokens for visual in self.visuals]
        asked = len(template.turn((), seen)) + len(self.prompt_ids)
        return asked + (len(self.reply_ids) + len(template.assistant_close)) * answered


@dataclass(slots=True)
class Prompt:
    """A dialogue laid out for the language model."""

    ids: list[int] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    """What each position holds; a tuple where a visual token stands."""
    visuals: list[Visual] = field(default_factory=list)
    """In the order of the prompt."""
    before: int = 0
    """Tokens in front of the newest turn."""

    def features_from(self, start: int) -> Floats | None:
        """Visual tokens from a position on, [tokens, D]; None where there are none.

        Raises:
            EngineError: an image has other visual tokens than it has places.
        """
        seen = sum(isinstance(slot, tuple) for slot in self.slots[:start])
        if seen == sum(visual.tokens for visual in self.visuals):
            return None
        found = [visual.features for visual in self.visuals if visual.features is not None]
        if [len(one) for one in found] != [visual.tokens for visual in self.visuals]:
            raise EngineError(
                f"the vision encoder gave {[len(one) for one in found]} visual tokens for "
                f"{[visual.tokens for visual in self.visuals]} places. Export the model again."
            )
        return np.concatenate(found)[seen:]

    def is_place(self, start: int) -> list[int]:
        """From a position on: 1 where a visual token stands, and 0."""
        return [int(isinstance(slot, tuple)) for slot in self.slots[start:]]

    def _add(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.slots += ids

    def _add_turn(self, template: PromptTemplate, turn: Turn) -> None:
        start = len(self.ids)
        self._add(template.turn(turn.prompt_ids, [visual.tokens for visual in turn.visuals]))
        # The words hold no image token, so the first ones of the turn are its places.
        place = start
        for visual in turn.visuals:
            place = self.ids.index(template.image_token_id, place)
            end = place + visual.tokens
            self.slots[place:end] = [(visual.digest, number) for number in range(visual.tokens)]
            place = end
        self.visuals += turn.visuals


def lay_out(template: PromptTemplate, turns: Sequence[Turn], newest: Turn) -> Prompt:
    """One prompt of a dialogue, up to where the newest answer begins."""
    prompt = Prompt()
    prompt._add(template.system)
    for turn in turns:
        prompt._add_turn(template, turn)
        prompt._add([*turn.reply_ids, *template.assistant_close])
    prompt.before = len(prompt.ids)
    prompt._add_turn(template, newest)
    return prompt


def dialogue_length(template: PromptTemplate, turns: Sequence[Turn], newest: Turn | None) -> int:
    """Tokens that `lay_out` gives, without laying out."""
    asked = newest.length(template, answered=False) if newest else 0
    return len(template.system) + sum(t.length(template, answered=True) for t in turns) + asked


def fit(
    template: PromptTemplate, turns: Sequence[Turn], newest: Turn, *, context: int, answer: int
) -> tuple[list[Turn], Turn]:
    """Make a dialogue fit: whole oldest turns go, their images move to the oldest turn that stays.

    Where the images themselves are too many, the oldest of those from earlier turns go.

    Args:
        template: of the model.
        turns: that were answered, oldest first.
        newest: that is to be answered.
        context: tokens that the model holds, answer included.
        answer: tokens the answer may take.

    Returns:
        the turns that stay, and the newest, which may have inherited images.

    Raises:
        ContextLengthError: the newest turn by itself leaves no room for one token.
    """
    alone = dialogue_length(template, (), newest)
    if alone + 1 > context:
        raise ContextLengthError(
            f"the prompt takes {alone} tokens and the model holds {context}, answer included. "
            "Ask a shorter question or give fewer images."
        )
    room = context - min(answer, max(context // ANSWER_SHARE, 1))
    kept, last = list(turns), newest
    while kept and dialogue_length(template, kept, last) > room:
        images = kept.pop(0).visuals
        if kept:
            kept[0] = replace(kept[0], visuals=(*images, *kept[0].visuals))
        else:
            last = replace(last, visuals=(*images, *last.visuals))
    while last.visuals != newest.visuals and dialogue_length(template, kept, last) > room:
        last = replace(last, visuals=last.visuals[1:])
    return kept, last


__all__ = [
    "ANSWER_SHARE",
    "Prompt",
    "Turn",
    "Visual",
    "dialogue_length",
    "fit",
    "lay_out",
]
