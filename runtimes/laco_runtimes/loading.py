"""From a folder to all that a pipeline runs on."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass

from laco_runtimes.bundle import Bundle
from laco_runtimes.encoding import ImageReader
from laco_runtimes.engines.base import Capabilities
from laco_runtimes.errors import ArgumentError
from laco_runtimes.feature_cache import FeatureCache
from laco_runtimes.kv_state import KVState
from laco_runtimes.manifest import BundleFacts
from laco_runtimes.prompt import load_tokenizer
from laco_runtimes.sources import Source, open_source
from laco_runtimes.turn import TurnRunner

logger = logging.getLogger("laco")


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
    """Per image of one tile."""
    context: int
    """Tokens of a dialogue, answer included."""
    capabilities: Capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that is loaded."""

    info: PipelineInfo
    facts: BundleFacts
    bundle: Bundle | None
    """None where it is a checkpoint."""
    feature_cache: FeatureCache
    runner: TurnRunner


def load_model(
    path: str | os.PathLike[str],
    device: str,
    variant: str,
    threads: int | None,
    public_key: str | os.PathLike[str] | None,
    feature_cache_bytes: int,
) -> Model:
    """Load what `Pipeline` is given, and say in the log, and by a warning, what it is.

    Raises:
        LacoError: see `Pipeline`.
    """
    if threads is not None and threads < 1:
        raise ArgumentError(f"threads is {threads}. Give at least 1, or leave it out.")
    cache = FeatureCache(feature_cache_bytes)
    source = open_source(path, device, variant, threads, public_key)
    info = _describe(source)
    runner = TurnRunner(
        reader=ImageReader(
            source.engine.vision,
            preprocessing=source.facts.preprocessing,
            layout=source.facts.token_layout(source.variant),
            newline=source.newline,
            cache=cache,
            variant=variant,
            batches=info.capabilities.batches_tiles,
        ),
        language=source.engine.language,
        kv=KVState(source.engine.language, rewinds=info.capabilities.rewinds),
        tokenizer=load_tokenizer(source.tokenizer),
        template=source.facts.prompt,
        context=info.context,
    )
    logger.info("%s on %s: %s", info.engine, info.device, info.reason)
    if source.unverified is not None:
        logger.warning("unverified, so answers may differ from the model's: %s", source.unverified)
    if info.latency_only:
        warnings.warn(
            f"variant {variant!r} was not trained this way: it is right about time and memory, "
            "and its words mean nothing.",
            stacklevel=3,  # whoever made the pipeline
        )
    return Model(
        info=info, facts=source.facts, bundle=source.bundle, feature_cache=cache, runner=runner
    )


def _describe(source: Source) -> PipelineInfo:
    facts, engine = source.facts, source.engine
    layout, longest = facts.token_layout(source.variant), facts.language.max_positions
    return PipelineInfo(
        engine=facts.target,
        device=engine.device,
        reason=engine.reason,
        variant=source.variant.name,
        latency_only=source.variant.latency_only,
        visual_tokens=layout.image_tokens((layout.image_size, layout.image_size), 1),
        context=min(facts.cache_capacity or longest, longest),
        capabilities=engine.capabilities,
    )


__all__ = ["Model", "PipelineInfo", "load_model"]
