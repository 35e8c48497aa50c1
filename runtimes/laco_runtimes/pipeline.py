"""`Pipeline`: a bundle, loaded once, that answers questions about images."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import numpy as np

from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import Floats, LoadRequest
from laco_runtimes.errors import ArgumentError, ContextLengthError
from laco_runtimes.generation import Detokenizer, generate, splice
from laco_runtimes.images import ImageSource, load_image, preprocess
from laco_runtimes.manifest import MAIN_VARIANT
from laco_runtimes.prompt import check_prompt, encode_text, load_tokenizer
from laco_runtimes.reply import Reply, ReplyStream, Timings

logger = logging.getLogger("laco")

DEFAULT_NEW_TOKENS = 128

STALLED_S = 1.0
"""How long a chat waits for a stream that its own thread holds open, before it gives up."""

Images = ImageSource | Sequence[ImageSource] | None


@dataclass(frozen=True, slots=True)
class PipelineInfo:
    """What a pipeline runs on."""

    engine: str
    device: str
    """In the engine's own words."""
    reason: str
    """Why this device."""
    variant: str
    latency_only: bool
    """The variant is a baseline whose words mean nothing."""
    visual_tokens: int
    """Per image."""


class Pipeline:
    """A bundle, verified and loaded.

    Safe to share between threads: requests queue, one runs at a time. Each request is a dialogue of
    its own.

    Args:
        path: bundle folder that `laco export` wrote.
        device: `auto`, or a device in the engine's own words; an explicit one never falls back.
        variant: vision encoder to use; `laco`, or a baseline of the bundle.
        threads: CPU threads per inference; None leaves it to the engine.
        public_key: PEM file of the key that must have signed the bundle; None asks for none.

    Raises:
        BundleNotFoundError: no bundle at `path`.
        BundleError: a bundle that is damaged, was changed, or is of another version.
        SignatureError: `public_key` is given, and the bundle is not as its owner signed it.
        ArgumentError: an unknown variant, or less than one thread.
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
    ) -> None:
        if threads is not None and threads < 1:
            raise ArgumentError(f"threads is {threads}. Give at least 1, or leave it out.")
        self.bundle = open_bundle(path, public_key=public_key)
        self._variant = self.bundle.variant(variant)
        self._tokenizer = load_tokenizer(self.bundle.tokenizer)
        manifest = self.bundle.manifest
        engine = load_engine(
            LoadRequest(self.bundle.root, manifest, self._variant, device, threads)
        )
        self._vision, self._language = engine.vision, engine.language
        self.info = PipelineInfo(
            engine=manifest.target,
            device=engine.device,
            reason=engine.reason,
            variant=variant,
            latency_only=self._variant.latency_only,
            visual_tokens=self._variant.tokens_per_tile,
        )
        self._lock = threading.Lock()
        self._last_thread: int | None = None
        logger.info("%s on %s: %s", manifest.target, engine.device, engine.reason)
        if manifest.unverified is not None:
            logger.warning(
                "unverified, so answers may differ from the model's: %s", manifest.unverified
            )
        if self._variant.latency_only:
            warnings.warn(
                f"variant {variant!r} was not trained this way: it is right about time and memory, "
                "and its words mean nothing.",
                stacklevel=2,
            )

    def chat(
        self, image: Images, prompt: str, *, max_new_tokens: int = DEFAULT_NEW_TOKENS
    ) -> Reply:
        """Answer a prompt about an image; greedy, so the same question has the same answer.

        Args:
            image: a path, the bytes of a file, an RGB array [H, W, 3] of uint8, a PIL image, or a
                list of these; None for text alone.
            prompt: the question. Special tokens spelled out in it are plain text.
            max_new_tokens: longest answer; the context may end it sooner (`stop_reason` "length").

        Raises:
            ArgumentError: an empty prompt, or `max_new_tokens` below 1.
            ImageError: an image that cannot be read.
            ContextLengthError: no room for an answer behind the prompt.
            EngineError: the engine failed.
        """
        stream = self.stream(image, prompt, max_new_tokens=max_new_tokens)
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self, image: Images, prompt: str, *, max_new_tokens: int = DEFAULT_NEW_TOKENS
    ) -> ReplyStream:
        """As `chat`, piece by piece. Until it ends or is closed, other requests wait for it.

        Arguments are checked at once; everything else is done, and raised, as it is read.
        """
        check_prompt(prompt)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
            raise ArgumentError("max_new_tokens must be a whole number. Give at least 1.")
        if max_new_tokens < 1:
            raise ArgumentError(f"max_new_tokens is {max_new_tokens}. Give at least 1.")
        images = _as_list(image)
        return ReplyStream(self._answer(images, prompt, max_new_tokens))

    def _answer(
        self, images: Sequence[ImageSource], prompt: str, max_new_tokens: int
    ) -> Generator[str, None, Reply]:
        template = self.bundle.manifest.prompt
        stop = template.stop
        with self._turn():
            watch = _Stopwatch()
            ids = self._prompt_ids(prompt, len(images))
            limit = min(max_new_tokens, self._room(ids))
            pixels = self._preprocess(images)  # [tiles, 3, S, S]
            preprocess_ms = watch.lap_ms()

            features = self._vision.encode(pixels) if images else None  # [tiles, N', D]
            vision_encode_ms = watch.lap_ms()

            embeds = self._language.embed(ids)  # [sequence, D]
            if features is not None:
                embeds = splice(embeds, ids, features, template.image_token_id)
            embed_ms = watch.lap_ms()

            self._language.rewind(0)
            text = Detokenizer(self._tokenizer)
            tokens: list[int] = []
            token_ms: list[float] = []
            pieces: list[str] = []
            for token in generate(self._language, embeds, stop, limit):  # prefill, then decode
                token_ms.append(watch.lap_ms())
                request_ms = watch.total_ms()
                tokens.append(token)
                if token not in stop and (piece := text.push(token)):
                    pieces.append(piece)
                    yield piece
                    self._last_thread = threading.get_ident()
                watch.lap_ms()  # the reader's time is not the next token's
            if piece := text.finish():
                pieces.append(piece)
                yield piece

        return Reply(
            text="".join(pieces),
            tokens=tuple(tokens),
            stop_reason="stop" if tokens[-1] in stop else "length",
            prompt_tokens=len(ids),
            visual_tokens=len(images) * self._variant.tokens_per_tile,
            timings=Timings(
                preprocess_ms=preprocess_ms,
                vision_encode_ms=vision_encode_ms,
                embed_ms=embed_ms,
                prefill_ms=token_ms[0],
                ttft_ms=preprocess_ms + vision_encode_ms + embed_ms + token_ms[0],
                tpot_ms=fmean(token_ms[1:]) if len(tokens) > 1 else None,
                request_ms=request_ms,
                tokens_per_second=1000 * len(tokens) / request_ms,
            ),
        )

    def _preprocess(self, images: Sequence[ImageSource]) -> Floats:
        """Pixel values of all images, one tile each, [tiles, 3, S, S]."""
        spec = self.bundle.manifest.preprocessing
        tiles = [preprocess(load_image(image), spec) for image in images]
        side = spec.image_size
        return np.concatenate(tiles) if tiles else np.zeros((0, 3, side, side), np.float32)

    def _prompt_ids(self, prompt: str, images: int) -> list[int]:
        template = self.bundle.manifest.prompt
        text = encode_text(self._tokenizer, prompt)
        if template.image_token_id in text:  # a tokenizer that does not mark it as special
            raise ArgumentError(
                "the prompt spells out the model's image token. Give images as images."
            )
        turn = template.turn(text, [self._variant.tokens_per_tile] * images)
        return [*template.system, *turn]

    def _room(self, ids: Sequence[int]) -> int:
        longest = self.bundle.manifest.language.max_positions
        if len(ids) + 1 > longest:
            raise ContextLengthError(
                f"the prompt takes {len(ids)} tokens and the model holds {longest}, answer "
                "included. Ask a shorter question or give fewer images."
            )
        return longest - len(ids)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other request runs.

        A stream that this thread itself left half read would be waited for in vain. It shows in
        that nobody else has moved it on, and is an error rather than a hang.
        """
        while not self._lock.acquire(timeout=STALLED_S):
            if self._last_thread == threading.get_ident():
                raise ArgumentError(
                    "a stream of this pipeline is still open on this thread. Read it to its end or "
                    "close it first."
                )
        self._last_thread = threading.get_ident()
        try:
            yield
        finally:
            self._last_thread = None
            self._lock.release()


class _Stopwatch:
    def __init__(self) -> None:
        self._start = self._last = time.perf_counter_ns()

    def lap_ms(self) -> float:
        """Milliseconds since the last lap."""
        now = time.perf_counter_ns()
        lap, self._last = now - self._last, now
        return lap / 1e6

    def total_ms(self) -> float:
        """Milliseconds from the start to the last lap."""
        return (self._last - self._start) / 1e6


def _as_list(image: Images) -> Sequence[ImageSource]:
    if image is None:
        return []
    return image if isinstance(image, list | tuple) else [cast(ImageSource, image)]


__all__ = ["Images", "Pipeline", "PipelineInfo"]
