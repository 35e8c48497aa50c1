"""One request from its images to its last token, and what becomes of it in its history."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import cast

from tokenizers import Tokenizer

from laco_runtimes.context import Prompt, Turn, Visual, fit, lay_out
from laco_runtimes.encoding import ImageReader
from laco_runtimes.engines.base import Floats, LanguageModel
from laco_runtimes.errors import LacoError
from laco_runtimes.generation import Detokenizer, StopStrings, generate, splice
from laco_runtimes.history import History
from laco_runtimes.kv_state import KVState
from laco_runtimes.progress import Progress, Stopwatch
from laco_runtimes.prompt import PromptTemplate, encode_text
from laco_runtimes.reply import Reply
from laco_runtimes.settings import Settings
from laco_runtimes.stream import Pieces
from laco_runtimes.turnstile import Control, Turnstile, Wish, Withdrawn
from laco_runtimes.visual import VisualPart, VisualSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Images that were encoded ahead of their request, with others."""

    parts: Sequence[VisualPart]
    features: Mapping[bytes, Floats]
    preprocess_ms: float
    """This request's share, as in `vision_encode_ms`."""
    vision_encode_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A question, checked."""

    prompt: str
    prompt_ids: tuple[int, ...]
    settings: Settings
    sources: tuple[VisualSource, ...] = ()
    encoded: Encoded | None = None
    """Takes the place of `sources`."""
    history: History | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRunner:
    """Answers requests one at a time on one engine."""

    reader: ImageReader
    language: LanguageModel
    kv: KVState
    tokenizer: Tokenizer
    template: PromptTemplate
    context: int
    """Tokens the model holds, answer included."""
    turnstile: Turnstile = field(default_factory=Turnstile)

    def run(self, request: Request, control: Control) -> Pieces:
        """Pieces of the answer; waits for its turn at the first one.

        Returns:
            the reply; None where an end was asked for before the turn came.
        """
        try:
            with self.turnstile.turn(control):
                return (yield from self._answer(request, control))
        except Withdrawn:
            return None

    def run_through(
        self, request: Request, on_text: Callable[[str], object] | None = None
    ) -> Reply:
        """The whole answer; `on_text` is given its pieces and may return "stop" or "cancel"."""
        control = Control()
        with closing(self.run(request, control)) as pieces:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    return cast(Reply, end.value)
                said = on_text(piece) if on_text is not None else None
                if isinstance(said, str) and said in ("stop", "cancel"):
                    control.wish = cast(Wish, said)

    def _answer(self, request: Request, control: Control) -> Pieces:
        ahead, history = request.encoded, request.history
        earlier = () if history is None else history.entries
        watch = Stopwatch(
            preprocess_ms=ahead.preprocess_ms if ahead else 0.0,
            vision_encode_ms=ahead.vision_encode_ms if ahead else 0.0,
        )
        parts = self._read(request)
        turns, newest = fit(
            self.template,
            earlier,
            Turn(
                prompt=request.prompt,
                prompt_ids=request.prompt_ids,
                visuals=tuple(
                    Visual(digest=part.digest, tokens=part.tokens, features=None) for part in parts
                ),
            ),
            context=self.context,
            answer=request.settings.max_new_tokens,
        )
        watch.lap("preprocess_ms")
        try:
            newest = self._with_features(newest, parts, request.encoded)
            watch.lap("vision_encode_ms")
            prompt = lay_out(self.template, turns, newest)
            cached = self.kv.keep_common(prompt.slots)
            embeds = self._embed(prompt, cached)  # [new tokens, D]
            watch.lap("embed_ms")
            progress = Progress(prompt, cached, watch)
            yield from self._generate(progress, embeds, request.settings, control)
            if progress.end == "cancelled":
                self._drop(progress)
            else:
                self.kv.record([*prompt.slots, *progress.ids])
        except GeneratorExit:  # the stream was closed or dropped between two tokens
            self._drop(progress)
            raise
        except BaseException:
            self.kv.forget()
            raise

        if history is not None and progress.end != "cancelled":
            answered = replace(newest, reply=progress.text, reply_ids=self._kept_ids(progress))
            # A history that was cleared meanwhile stays so.
            past = turns if history.entries is earlier else history.entries
            history.entries = (*past, answered)
        return progress.reply(request.settings)

    def _read(self, request: Request) -> Sequence[VisualPart]:
        if request.encoded is not None:
            return request.encoded.parts
        earlier = () if request.history is None else request.history.entries
        return self.reader.read(request.sources, alone=not any(turn.visuals for turn in earlier))

    def _with_features(
        self, newest: Turn, parts: Sequence[VisualPart], encoded: Encoded | None
    ) -> Turn:
        """The turn with its images encoded. Those it inherited are already."""
        found = self.reader.encode(parts) if encoded is None else encoded.features
        visuals = tuple(
            visual
            if visual.features is not None
            else replace(visual, features=found[visual.digest])
            for visual in newest.visuals
        )
        return replace(newest, visuals=visuals)

    def _embed(self, prompt: Prompt, start: int) -> Floats:
        """Embeddings of the prompt from a position on, visual tokens in their places."""
        embeds = self.language.embed(prompt.ids[start:])
        features = prompt.features_from(start)
        if features is None:
            return embeds
        return splice(embeds, prompt.is_place(start), features[None], image_token_id=1)

    def _generate(
        self, progress: Progress, embeds: Floats, settings: Settings, control: Control
    ) -> Iterator[str]:
        """Pieces of the answer; what it is in the end stands in `progress`."""
        stop, prompt = self.template.stop, progress.prompt
        text, held = Detokenizer(self.tokenizer), StopStrings(settings.stops)
        limit = min(settings.max_new_tokens, self.context - len(prompt.ids))
        image = self.template.image_token_id
        tokens = generate(
            self.language, embeds, prompt.ids, stop, settings, limit, image_token_id=image
        )
        with closing(tokens):  # takes from the KV cache what was drafted and not handed out
            for token in tokens:
                progress.add(token)
                if token.id in stop:
                    progress.end = "stop"
                    break
                if piece := held.push(text.push(token.id)):
                    progress.pieces.append(piece)
                    yield piece
                    self.turnstile.moved()
                if held.found:
                    break
                if control.wish:
                    progress.end = "stopped"
                    break
                progress.watch.skip()  # the reader's time is not the next token's
        if piece := held.push(text.finish()) + held.finish():
            progress.pieces.append(piece)
            yield piece
        if held.found:
            progress.end = "stop_string"
        if control.wish == "cancel":
            progress.end = "cancelled"

    def _drop(self, progress: Progress) -> None:
        """Leave the KV cache with what the dialogue held before this turn."""
        try:
            self.kv.record([*progress.prompt.slots, *progress.ids])
            self.kv.cut(progress.prompt.before)
        except LacoError:
            self.kv.forget()

    def _kept_ids(self, progress: Progress) -> tuple[int, ...]:
        """Ids of an answer as its history has them."""
        if progress.end == "stop":
            return tuple(progress.ids[:-1])
        if progress.end == "stop_string":  # the string may begin or end amid a token
            return tuple(encode_text(self.tokenizer, progress.text))
        return tuple(progress.ids)


__all__ = ["Encoded", "Request", "TurnRunner"]
