"""The three graphs of a bundle, declared once: names, types and dimensions of inputs and outputs.

The exporter writes graphs to these declarations, checks them against it, and engines read by it.
A dimension is a number where it is static and a name where it is dynamic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from laco_runtimes.manifest import LanguageFacts

DType = Literal["float32", "int32", "int64"]
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


def decoder(facts: LanguageFacts) -> GraphSpec:
    """Embeddings and the KV cache to the logits of the last position and the longer cache.

    `attention_mask` is 1 for a cached or new token and 0 for padding; `total` = past + sequence.
    """
    cache = ("batch", facts.kv_heads, "past", facts.head_dim)
    longer = ("batch", facts.kv_heads, "total", facts.head_dim)
    return GraphSpec(
        "decoder",
        (
            TensorSpec("inputs_embeds", "float32", ("batch", "sequence", facts.hidden_size)),
            TensorSpec("attention_mask", "int64", ("batch", "total")),
            TensorSpec("position_ids", "int64", ("batch", "sequence")),
            *(
                TensorSpec(name, "float32", cache)
                for name in cache_names(facts.layers, "past_key_values")
            ),
        ),
        (
            TensorSpec("logits", "float32", ("batch", 1, facts.vocab_size)),
            *(TensorSpec(name, "float32", longer) for name in cache_names(facts.layers, "present")),
        ),
    )


def stateful_decoder(facts: LanguageFacts) -> GraphSpec:
    """The decoder with its KV cache inside, as OpenVINO runs it (ReadValue / Assign).

    `beam_idx` names, for each row of the batch, the row whose cache it continues.
    """
    plain = decoder(facts)
    return GraphSpec(
        "decoder",
        (*plain.inputs[:3], TensorSpec("beam_idx", "int32", ("batch",))),
        plain.outputs[:1],
    )


def cache_names(layers: int, prefix: Literal["past_key_values", "present"]) -> tuple[str, ...]:
    """Names of the KV cache tensors, layer by layer, key before value."""
    return tuple(f"{prefix}.{i}.{part}" for i in range(layers) for part in ("key", "value"))


__all__ = [
    "GraphSpec",
    "TensorSpec",
    "cache_names",
    "decoder",
    "embed_tokens",
    "stateful_decoder",
    "vision_encoder",
]
