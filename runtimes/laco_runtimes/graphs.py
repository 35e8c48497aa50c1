"""The three graphs of a bundle, declared once: names, types and dimensions of inputs and outputs.

The exporter writes graphs to these declarations, checks them against it, and engines read by it.
A dimension is a number where it is static and a name where it is dynamic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from laco_runtimes.errors import ConfigError
from laco_runtimes.manifest import LanguageFacts

DType = Literal["float32", "float16", "bfloat16", "int32", "int64", "bool"]
CacheDType = Literal["float32", "float16", "bfloat16"]
FlavourName = Literal["stateful", "static", "contrib", "concat"]
Dim = int | str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output."""

    name: str
    dtype: DType
    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def vision_encoder(image_size: int, tokens_per_tile: int, hidden_size: int) -> GraphSpec:
    """Pixels to visual tokens in language model width; only the number of tiles is dynamic."""
    return GraphSpec(
        "vision_encoder",
        (TensorSpec("pixel_values", "float32", ("tiles", 3, image_size, image_size)),),
        (TensorSpec("image_features", "float32", ("tiles", tokens_per_tile, hidden_size)),),
    )


def embed_tokens(hidden_size: int) -> GraphSpec:
    """Token ids to embeddings."""
    return GraphSpec(
        "embed_tokens",
        (TensorSpec("input_ids", "int64", ("batch", "sequence")),),
        (TensorSpec("inputs_embeds", "float32", ("batch", "sequence", hidden_size)),),
    )


@dataclass(frozen=True, slots=True)
class DecoderForm:
    """How a decoder graph takes its inputs and keeps its KV cache."""

    flavour: FlavourName = "stateful"
    """`stateful` and `concat`: the cache goes in and comes out longer. `contrib`: likewise, or in
    and out of one buffer. `static`: the cache has one size and is written in place."""
    cache_dtype: CacheDType = "float32"
    capacity: int | None = None
    """Tokens that a `static` cache holds; the others grow."""


def decoder(facts: LanguageFacts, form: DecoderForm | None = None) -> GraphSpec:
    """Embeddings and the KV cache to the logits of the last position and the new cache.

    Args:
        facts: shapes of the language model.
        form: flavour, type and capacity of the cache; None for `stateful` in float32.

    Raises:
        ConfigError: a flavour that is not known, or a `static` one without a capacity.
    """
    form = form or DecoderForm()
    if form.flavour not in _DECODERS:
        raise ConfigError(
            f"there is no decoder flavour {form.flavour!r}. Use one of {', '.join(_DECODERS)}."
        )
    return _DECODERS[form.flavour](facts, form)


def _growing(facts: LanguageFacts, form: DecoderForm) -> GraphSpec:
    """`attention_mask` is 1 for a cached or new token, 0 for padding; `total` = past + sequence."""
    return _decoder(
        facts,
        form,
        inputs=(
            TensorSpec("inputs_embeds", "float32", ("batch", "sequence", facts.hidden_size)),
            TensorSpec("attention_mask", "int64", ("batch", "total")),
            TensorSpec("position_ids", "int64", ("batch", "sequence")),
        ),
        past=("batch", "past"),
        present=("batch", "total"),
    )


def _contrib(facts: LanguageFacts, form: DecoderForm) -> GraphSpec:
    """Positions follow from how many tokens of `attention_mask` are 1: padding only behind them.

    Where the cache is one buffer, bound as input and output, both are as long as the buffer.
    """
    plain = _growing(facts, form)
    inputs = tuple(one for one in plain.inputs if one.name != "position_ids")
    return GraphSpec(plain.name, inputs, plain.outputs)


def _static(facts: LanguageFacts, form: DecoderForm) -> GraphSpec:
    """One row of a batch; `write_indices` is how many tokens the cache holds before this pass.

    `attention_mask[0, 0, s, c]` says whether the new token s attends to slot c of the cache, its
    own slot included. Each `present` must be bound to the buffer of its `past_key_values`.
    """
    if form.capacity is None or form.capacity < 1:
        raise ConfigError(
            f"a static decoder cannot have a cache of {form.capacity} tokens. "
            "Give the capacity as a positive number."
        )
    return _decoder(
        facts,
        form,
        inputs=(
            TensorSpec("inputs_embeds", "float32", (1, "sequence", facts.hidden_size)),
            TensorSpec("position_ids", "int64", (1, "sequence")),
            TensorSpec("write_indices", "int64", (1,)),
            TensorSpec("attention_mask", "bool", (1, 1, "sequence", form.capacity)),
        ),
        past=(1, form.capacity),
        present=(1, form.capacity),
    )


_DECODERS: dict[str, Callable[[LanguageFacts, DecoderForm], GraphSpec]] = {
    "stateful": _growing,
    "static": _static,
    "contrib": _contrib,
    "concat": _growing,
}


def _decoder(
    facts: LanguageFacts,
    form: DecoderForm,
    *,
    inputs: tuple[TensorSpec, ...],
    past: tuple[Dim, Dim],
    present: tuple[Dim, Dim],
) -> GraphSpec:
    """`past` and `present` are rows and tokens of the cache."""

    def cache(
        prefix: Literal["past_key_values", "present"], dims: tuple[Dim, Dim]
    ) -> list[TensorSpec]:
        shape = (dims[0], facts.kv_heads, dims[1], facts.head_dim)
        return [
            TensorSpec(name, form.cache_dtype, shape) for name in cache_names(facts.layers, prefix)
        ]

    logits = TensorSpec("logits", "float32", (past[0], 1, facts.vocab_size))
    return GraphSpec(
        "decoder",
        (*inputs, *cache("past_key_values", past)),
        (logits, *cache("present", present)),
    )


def stateful_decoder(facts: LanguageFacts) -> GraphSpec:
    """The decoder with its KV cache inside, as OpenVINO runs it (ReadValue / Assign).

    `beam_idx` names, for each row of the batch, the row whose cache it continues.
    """
    plain = decoder(facts)
    return GraphSpec(
        plain.name,
        (*plain.inputs[:3], TensorSpec("beam_idx", "int32", ("batch",))),
        plain.outputs[:1],
    )


def cache_names(layers: int, prefix: Literal["past_key_values", "present"]) -> tuple[str, ...]:
    """Names of the KV cache tensors, layer by layer, key before value."""
    return tuple(f"{prefix}.{i}.{part}" for i in range(layers) for part in ("key", "value"))


__all__ = [
    "CacheDType",
    "DecoderForm",
    "FlavourName",
    "GraphSpec",
    "TensorSpec",
    "cache_names",
    "decoder",
    "embed_tokens",
    "stateful_decoder",
    "vision_encoder",
]
