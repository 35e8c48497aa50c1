"""`Pipeline`: a model, loaded once, that answers questions about images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack, cast

from laco_runtimes.batch import encode_ahead
from laco_runtimes.bundle import Bundle
from laco_runtimes.context import Turn
from laco_runtimes.errors import ArgumentError, EngineError
from laco_runtimes.feature_cache import FEATURE_CACHE_BYTES, FeatureCache
from laco_runtimes.history import History, restore_turns
from laco_runtimes.keywords import SettingsKeywords
from laco_runtimes.loading import PipelineInfo, load_model
from laco_runtimes.lookup import check_lookup
from laco_runtimes.manifest import MAIN_VARIANT, BundleFacts
from laco_runtimes.prompt import check_prompt, encode_text
from laco_runtimes.reply import Reply
from laco_runtimes.settings import Settings
from laco_runtimes.stream import ReplyStream
from laco_runtimes.turn import Request
from laco_runtimes.turnstile import Control
from laco_runtimes.visual import VisualSource
from laco_runtimes.worker import Worker

if TYPE_CHECKING:
    from laco_runtimes.async_stream import AsyncReplyStream

Images = VisualSource | Sequence[VisualSource] | None


class Pipeline:
    """A bundle or a checkpoint, verified and loaded.

    Safe to share between threads: requests queue, one runs at a time. Not to be used in a process
    forked after it was loaded: engines keep threads, which a fork leaves behind.

    What a prompt begins with and the KV cache still holds is not computed again (`cached_tokens` of
    the reply), nor are visual tokens of an image that was seen before.

    Args:
        path: bundle folder that `laco export` wrote, or checkpoint folder, run by PyTorch.
        device: `auto`, or a device in the engine's own words; an explicit one never falls back.
        variant: vision encoder to use; `laco`, or a baseline of the bundle.
        threads: CPU threads per inference; None leaves it to the engine.
        public_key: PEM file of the key that must have signed the bundle; None asks for none.
        feature_cache_bytes: budget for visual tokens of images seen before; 0 keeps none.

    Raises:
        BundleNotFoundError: no bundle at `path`.
        BundleError: a bundle that is damaged, was changed, or is of another version.
        CheckpointError: a checkpoint that cannot be read.
        SignatureError: `public_key` is given, and the bundle is not as its owner signed it.
        ArgumentError: an unknown variant, less than one thread, or a negative budget.
        MissingPackageError: the engine's package is not installed.
        EngineError: the engine refused the device or a graph.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        variant: str = MAIN_VARIANT,
        threads: int | None = None,
        public_key: str | os.PathLike[str] | None = None,
        feature_cache_bytes: int = FEATURE_CACHE_BYTES,
    ) -> None:
        model = load_model(path, device, variant, threads, public_key, feature_cache_bytes)
        self.info: PipelineInfo = model.info
        self.facts: BundleFacts = model.facts
        self.bundle: Bundle | None = model.bundle
        """None where it runs a checkpoint."""
        self.feature_cache: FeatureCache = model.feature_cache
        self._runner = model.runner
        self._worker = Worker()
        self._process = os.getpid()

    def chat(
        self,
        image: Images,
        prompt: str,
        *,
        history: History | None = None,
        on_text: Callable[[str], object] | None = None,
        **settings: Unpack[SettingsKeywords],
    ) -> Reply:
        """Answer a prompt about an image; greedy by default: the same question, the same answer.

        Args:
            image: a path, the bytes of a file, an RGB array [H, W, 3] of uint8, a PIL image, a
                `Video`, or a list of these; None for text alone, or about images in the history.
            prompt: the question. Special tokens spelled out in it are plain text.
            history: a dialogue of `new_history`; the answer becomes its next turn.
            on_text: is given each piece of the answer as it comes. What it returns ends the answer
                at once: "stop" keeps what there is, "cancel" drops the turn (`stop_reason` says so)
                and anything else lets it go on.
            **settings: fields of `laco_runtimes.settings.Settings`: `max_new_tokens` (128),
                `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, `stop`,
                `logprobs`, `prompt_lookup`.

        Raises:
            ArgumentError: an empty prompt, a setting out of range, or one that the engine cannot
                honour, or a history of another pipeline.
            ImageError: an image that cannot be read.
            ContextLengthError: no room for an answer behind this question alone.
            OutOfMemoryError: no memory for this request; another may be asked at once.
            EngineError: the engine failed, or this process was forked.
        """
        request = self._request(image, prompt, history, settings)
        return self._runner.run_through(request, on_text)

    def stream(
        self,
        image: Images,
        prompt: str,
        *,
        history: History | None = None,
        **settings: Unpack[SettingsKeywords],
    ) -> ReplyStream:
        """As `chat`, piece by piece. Until it ends or is closed, other requests wait for it.

        Arguments are checked at once; everything else is done, and raised, as it is read.
        """
        request, control = self._request(image, prompt, history, settings), Control()
        return ReplyStream(self._runner.run(request, control), control)

    def chat_batch(
        self, images: Sequence[Images], prompt: str, **settings: Unpack[SettingsKeywords]
    ) -> list[Reply]:
        """Ask the same about each of many images; several are encoded at once.

        Args:
            images: of each answer; each may be a list of several.
            prompt: as for `chat`.
            **settings: as for `chat`.

        Raises:
            LacoError: as `chat`. Where an image cannot be read, a note says which.
        """
        asked = self._request(None, prompt, None, settings)
        sources = [_as_tuple(image) for image in images]
        ahead = encode_ahead(self._runner.reader, self._runner.turnstile, sources)
        return [self._runner.run_through(replace(asked, encoded=one)) for one in ahead]

    async def achat(
        self,
        image: Images,
        prompt: str,
        *,
        history: History | None = None,
        **settings: Unpack[SettingsKeywords],
    ) -> Reply:
        """As `chat`, without holding up the event loop. Cancelling the task cancels the answer."""
        async with self.astream(image, prompt, history=history, **settings) as stream:
            async for _ in stream:
                pass
            return stream.reply

    def astream(
        self,
        image: Images,
        prompt: str,
        *,
        history: History | None = None,
        **settings: Unpack[SettingsKeywords],
    ) -> AsyncReplyStream:
        """As `stream`, for `async for`. The engine runs ahead of a reader that is slow."""
        from laco_runtimes.async_stream import AsyncReplyStream  # asyncio is slow to import

        stream = self.stream(image, prompt, history=history, **settings)
        return AsyncReplyStream(stream, self._worker)

    def new_history(self, saved: str | None = None, images: Images = None) -> History:
        """A dialogue, empty or as it was saved.

        Args:
            saved: what `History.to_json` returned, here or in another process.
            images: those of the saved dialogue, in any order; of no need while the feature cache
                still holds their visual tokens.

        Raises:
            ArgumentError: `saved` is something else, or an image of it is not given.
            ImageError: an image that cannot be read.
            EngineError: the engine failed, or this process was forked.
        """
        self._check_process()
        turns: Sequence[Turn] = ()
        if saved is not None:
            with self._runner.turnstile.turn(Control()):
                turns = restore_turns(
                    saved, _as_tuple(images), self._runner.reader, self._runner.tokenizer
                )
        return History(self.facts.prompt, self, turns)

    def forget(self) -> None:
        """Drop the KV state and all cached visual tokens: the next request pays for everything."""
        self._check_process()
        with self._runner.turnstile.turn(Control()):
            self._runner.kv.forget()
            self.feature_cache.clear()

    def _request(
        self, image: Images, prompt: str, history: History | None, settings: SettingsKeywords
    ) -> Request:
        self._check_process()
        check_prompt(prompt)
        checked = Settings(**settings)
        check_lookup(checked, self.info.capabilities)
        if history is not None and history.owner is not self:
            raise ArgumentError(
                "the history is of another pipeline. Make one with new_history of this pipeline; "
                "to_json carries a dialogue over."
            )
        ids = encode_text(self._runner.tokenizer, prompt)
        if self.facts.prompt.image_token_id in ids:  # a tokenizer that marks it as not special
            raise ArgumentError(
                "the prompt spells out the model's image token. Give images as images."
            )
        return Request(
            prompt=prompt,
            prompt_ids=tuple(ids),
            settings=checked,
            sources=_as_tuple(image),
            history=history,
        )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise EngineError(
                "this process was forked after the pipeline was loaded, and the threads of its "
                "engine were left behind. Load a pipeline here, or start processes with `spawn`."
            )


def _as_tuple(image: Images) -> tuple[VisualSource, ...]:
    if image is None:
        return ()
    return tuple(image) if isinstance(image, list | tuple) else (cast(VisualSource, image),)


__all__ = ["Images", "Pipeline", "PipelineInfo"]
