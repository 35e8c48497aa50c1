"""One timed request: the steps of `Pipeline.chat` with a clock between them, to a fixed length."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer

from laco_runtimes.bundle import Bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import Floats, LoadedEngine, LoadRequest
from laco_runtimes.errors import ContextLengthError
from laco_runtimes.generation import generate, splice
from laco_runtimes.manifest import Manifest, Variant
from laco_runtimes.newline import read_newline
from laco_runtimes.prompt import encode_text, load_tokenizer
from laco_runtimes.reply import Timings
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
    new_tokens: int
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


def check_room(bundle: Bundle, workload: Workload) -> None:
    """Make sure that every variant's prompt and answer fit in the model's context.

    Raises:
        ContextLengthError: naming the longest variant.
    """
    tokenizer, limit = load_tokenizer(bundle.tokenizer), bundle.manifest.language.max_positions
    longest = max(bundle.manifest.variants, key=lambda variant: variant.tokens_per_tile)
    visual_tokens = _read_image(bundle.manifest, longest, workload).tokens
    prompt = len(_prompt_ids(bundle.manifest, tokenizer, visual_tokens, workload.prompt))
    if prompt + workload.new_tokens > limit:
        raise ContextLengthError(
            f"{prompt} prompt tokens of variant {longest.name!r} and {workload.new_tokens} new "
            f"ones do not fit in the model's context of {limit}. Ask for fewer new tokens."
        )


def timed_request(contender: Contender, clock: Clock = time.perf_counter_ns) -> Timings:
    """Answer once, with exactly as many tokens as the workload says: a stop token does not end it.

    Raises:
        EngineError: the engine failed, or gave another number of visual tokens than its manifest.
    """
    manifest, workload = contender.manifest, contender.workload
    vision, language = contender.engine.vision, contender.engine.language
    start = clock()
    part = contender.read_image()
    pixels = pixel_values(part.squares, manifest.preprocessing)  # [tiles, 3, S, S]
    ids = contender.prompt_ids(part.tokens)
    preprocessed = clock()
    features = vision.encode(pixels)  # [tiles, N', D]
    layout = manifest.token_layout(contender.variant)
    features = arrange(features, part, layout, contender.newline)  # [tokens, D]
    encoded = clock()
    language.rewind(0)
    embeds = splice(language.embed(ids), ids, features, manifest.prompt.image_token_id)
    embedded = clock()
    tokens = generate(language, embeds, ids, (), Settings(), workload.new_tokens)
    next(tokens)
    first = clock()
    after_first = sum(1 for _ in tokens)
    last = clock()
    return Timings(
        preprocess_ms=(preprocessed - start) / 1e6,
        vision_encode_ms=(encoded - preprocessed) / 1e6,
        embed_ms=(embedded - encoded) / 1e6,
        prefill_ms=(first - embedded) / 1e6,
        ttft_ms=(first - start) / 1e6,
        tpot_ms=(last - first) / after_first / 1e6 if after_first else None,
        request_ms=(last - start) / 1e6,
        tokens_per_second=(1 + after_first) * 1e9 / (last - start),
    )


def _read_image(manifest: Manifest, variant: Variant, workload: Workload) -> VisualPart:
    [part] = read_visuals([workload.image], manifest.preprocessing, manifest.token_layout(variant))
    return part


def _prompt_ids(
    manifest: Manifest, tokenizer: Tokenizer, visual_tokens: int, prompt: str
) -> list[int]:
    turn = manifest.prompt.turn(encode_text(tokenizer, prompt), [visual_tokens])
    return [*manifest.prompt.system, *turn]


__all__ = ["Clock", "Contender", "Workload", "check_room", "load_contender", "timed_request"]
