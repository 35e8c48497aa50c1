"""One timed request: the steps of `Pipeline.chat`, each timed by itself, to a fixed length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from laco_runtimes.bundle import Bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import Floats, LoadedEngine, LoadRequest
from laco_runtimes.errors import ContextLengthError
from laco_runtimes.generation import generate, splice
from laco_runtimes.manifest import Manifest, Variant
from laco_runtimes.newline import read_newline
from laco_runtimes.prompt import encode_text, load_tokenizer
from laco_runtimes.settings import Settings
from laco_runtimes.visual import VisualPart, arrange, pixel_values, read_visuals

Clock = Callable[[], int]
"""Nanoseconds since some moment."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What every request of every variant brings, and where it runs."""

    image: bytes
    """An encoded image file."""
    prompt: str
    new_tokens: tuple[int, ...]
    """Lengths of answers to tell, ascending; a request runs to the last one."""
    device: str
    """`auto`, or a device in the engine's own words."""
    threads: int | None
    """CPU threads per inference; None leaves it to the engine."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One variant, loaded, with its work."""

    variant: Variant
    engine: LoadedEngine
    manifest: Manifest
    tokenizer: Tokenizer
    workload: Workload
    newline: Floats | None
    """[D], `image_newline` of the model; None where it has none."""

    def read_image(self) -> VisualPart:
        """The image of the workload as tiles."""
        return _read_image(self.manifest, self.variant, self.workload)

    def prompt_ids(self, visual_tokens: int) -> list[int]:
        """The prompt of a fresh dialogue about one image, with a place for each visual token."""
        return _prompt_ids(self.manifest, self.tokenizer, visual_tokens, self.workload.prompt)


def load_contender(bundle: Bundle, variant: Variant, workload: Workload) -> Contender:
    """Load the engine of one variant.

    Raises:
        MissingPackageError, EngineError: the engine is not installed or refused.
    """
    engine = load_engine(
        LoadRequest(bundle.root, bundle.manifest, variant, workload.device, workload.threads)
    )
    return Contender(
        variant,
        engine,
        bundle.manifest,
        load_tokenizer(bundle.tokenizer),
        workload,
        read_newline(bundle.root, bundle.manifest),
    )


def fitting(
    entrants: Sequence[tuple[Manifest, Path, Variant]], workload: Workload
) -> tuple[int, ...]:
    """Lengths of `workload.new_tokens` that every variant's context has room for.

    Raises:
        ContextLengthError: there is none, naming the longest variant.
    """
    room, name = min(
        (_room(manifest, tokenizer, variant, workload), variant.name)
        for manifest, tokenizer, variant in entrants
    )
    found = tuple(length for length in workload.new_tokens if length <= room)
    if not found:
        raise ContextLengthError(
            f"{workload.new_tokens[0]} new tokens do not fit in the model's context behind the "
            f"prompt of variant {name!r}, which leaves room for {max(room, 0)}. "
            "Ask for fewer new tokens."
        )
    return found


def _room(manifest: Manifest, tokenizer: Path, variant: Variant, workload: Workload) -> int:
    visual_tokens = _read_image(manifest, variant, workload).tokens
    ids = _prompt_ids(manifest, load_tokenizer(tokenizer), visual_tokens, workload.prompt)
    return manifest.language.max_positions - len(ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """One request, in milliseconds. Stages and decoding are timed each by itself, the request from
    its start to its end."""

    preprocess_ms: float
    vision_encode_ms: float
    embed_ms: float
    prefill_ms: float
    decode_ms: float
    """All tokens after the first."""
    ttft_ms: float
    tpot_ms: float | None
    """None where there is one token."""
    request_ms: float
    answers_ms: tuple[float, ...]
    """Start to the last token of each length of `Workload.new_tokens`."""
    readings: int
    """Of the clock."""

    @property
    def stage_sum_ms(self) -> float:
        """The four stages and decoding, added up."""
        before = self.preprocess_ms + self.vision_encode_ms + self.embed_ms + self.prefill_ms
        return before + self.decode_ms


def timed_request(contender: Contender, clock: Clock = time.perf_counter_ns) -> RequestTimes:
    """Answer once, with as many tokens as the longest length: a stop token does not end it.

    Raises:
        EngineError: the engine failed, or gave another number of visual tokens than its manifest.
    """
    manifest, workload = contender.manifest, contender.workload
    vision, language = contender.engine.vision, contender.engine.language
    layout = manifest.token_layout(contender.variant)
    watch = _Watch(clock)
    start = watch.read()
    with watch.stage("preprocess"):
        part = contender.read_image()
        pixels = pixel_values(part.squares, manifest.preprocessing)  # [tiles, 3, S, S]
        ids = contender.prompt_ids(part.tokens)
    with watch.stage("vision_encode"):
        features = vision.encode(pixels)  # [tiles, N', D]
        features = arrange(features, part, layout, contender.newline)  # [tokens, D]
    with watch.stage("embed"):
        language.rewind(0)
        embeds = splice(language.embed(ids), ids, features, manifest.prompt.image_token_id)
    with watch.stage("prefill"):
        tokens = generate(language, embeds, ids, (), Settings(), workload.new_tokens[-1])
        next(tokens)
    first = watch.read()
    ends, so_far = [], 1
    with watch.stage("decode"):
        for length in workload.new_tokens:
            for _ in islice(tokens, length - so_far):
                pass
            so_far = length
            ends.append(watch.read())
    end = watch.read()
    tokens.close()
    stages = watch.stages
    return RequestTimes(
        preprocess_ms=stages["preprocess"],
        vision_encode_ms=stages["vision_encode"],
        embed_ms=stages["embed"],
        prefill_ms=stages["prefill"],
        decode_ms=stages["decode"],
        ttft_ms=(first - start) / 1e6,
        tpot_ms=stages["decode"] / (so_far - 1) if so_far > 1 else None,
        request_ms=(end - start) / 1e6,
        answers_ms=(*((one - start) / 1e6 for one in ends[:-1]), (end - start) / 1e6),
        readings=watch.readings,
    )


class _Watch:
    """A clock that counts its readings, and what it measured by the name of the stage."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.readings = 0
        self.stages: dict[str, float] = {}

    def read(self) -> int:
        self.readings += 1
        return self._clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.read()
        yield
        self.stages[name] = (self.read() - start) / 1e6


def _read_image(manifest: Manifest, variant: Variant, workload: Workload) -> VisualPart:
    [part] = read_visuals([workload.image], manifest.preprocessing, manifest.token_layout(variant))
    return part


def _prompt_ids(
    manifest: Manifest, tokenizer: Tokenizer, visual_tokens: int, prompt: str
) -> list[int]:
    turn = manifest.prompt.turn(encode_text(tokenizer, prompt), [visual_tokens])
    return [*manifest.prompt.system, *turn]


__all__ = [
    "Clock",
    "Contender",
    "RequestTimes",
    "Workload",
    "fitting",
    "load_contender",
    "timed_request",
]
