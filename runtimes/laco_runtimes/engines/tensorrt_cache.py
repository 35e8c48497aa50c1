"""The KV cache of the TensorRT engine: on the device from the first token to the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.tensorrt_device import Device, DeviceBuffer
from laco_runtimes.engines.tensorrt_run import Binding
from laco_runtimes.graphs import DecoderForm, cache_names
from laco_runtimes.manifest import LanguageFacts

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Inputs = dict[str, NDArray[Any]]
"""Small inputs by name, to be uploaded before a run."""


class KvCache(Protocol):
    """One form of cache: what it adds to the inputs of a run, and where it lies."""

    replays: bool
    """Whether a run has the same shapes and addresses for every single token."""

    def inputs(self, past: int, new: int) -> Inputs:
        """Inputs for `new` tokens behind `past` cached ones."""

    def bindings(self, past: int, new: int) -> dict[str, Binding]:
        """The cache itself, as input and as output."""

    def advance(self) -> None:
        """The run is done: its output is the cache."""

    def shorten(self, past: int, length: int) -> None:
        """Keep the first `length` of `past` tokens."""


def make_cache(device: Device, facts: LanguageFacts, form: DecoderForm, context: int) -> KvCache:
    """The cache of a decoder in that form, for up to `context` tokens."""
    return CACHES[form.flavour](device, facts, form, context)


class _Static:
    """One buffer per tensor, written in place at `write_indices`, attended to under a mask.

    What lies behind the cached tokens is masked, so it need not be cleared; but it must be numbers
    from the start, as zero times NaN is NaN. Buffers come filled with zeros.
    """

    replays = True

    def __init__(
        self, device: Device, facts: LanguageFacts, form: DecoderForm, context: int
    ) -> None:
        self._context = context
        shape = (1, facts.kv_heads, context, facts.head_dim)
        nbytes = int(np.prod(shape)) * ITEM_BYTES[form.cache_dtype]
        self._bindings: dict[str, Binding] = {}
        names = (cache_names(facts.layers, kind) for kind in ("past_key_values", "present"))
        for past, present in zip(*names, strict=True):
            # Two names, one place: the plan requires it.
            binding = Binding(device.allocate(nbytes), shape)
            self._bindings |= {past: binding, present: binding}

    def inputs(self, past: int, new: int) -> Inputs:
        slots, positions = np.arange(self._context), np.arange(past, past + new)
        return {
            "position_ids": positions[None].astype(np.int64),
            "write_indices": np.array([past], np.int64),
            "attention_mask": (slots <= positions[:, None])[None, None],  # [1, 1, S, C]
        }

    def bindings(self, past: int, new: int) -> dict[str, Binding]:
        return dict(self._bindings)

    def advance(self) -> None:
        """It was written in place."""

    def shorten(self, past: int, length: int) -> None:
        """The mask hides what is behind."""


class _Growing:
    """Two buffers per tensor: each run reads one and writes the other, one token longer."""

    replays = False

    def __init__(
        self, device: Device, facts: LanguageFacts, form: DecoderForm, context: int
    ) -> None:
        self._device, self._facts = device, facts
        self._item = ITEM_BYTES[form.cache_dtype]
        # A run may be given more tokens than fit; what is behind the context is never read.
        nbytes = facts.kv_heads * context * facts.head_dim * self._item
        self._names = [cache_names(facts.layers, kind) for kind in ("past_key_values", "present")]
        self._now, self._next = (
            [device.allocate(nbytes) for _ in self._names[0]] for _ in range(2)
        )

    def inputs(self, past: int, new: int) -> Inputs:
        return {
            "attention_mask": np.ones((1, past + new), np.int64),
            "position_ids": np.arange(past, past + new, dtype=np.int64)[None],
        }

    def bindings(self, past: int, new: int) -> dict[str, Binding]:
        def named(names: tuple[str, ...], buffers: list[DeviceBuffer], tokens: int) -> Any:
            shape = (1, self._facts.kv_heads, tokens, self._facts.head_dim)
            return {name: Binding(one, shape) for name, one in zip(names, buffers, strict=True)}

        past_names, present_names = self._names
        return {
            **named(past_names, self._now, past),
            **named(present_names, self._next, past + new),
        }

    def advance(self) -> None:
        self._now, self._next = self._next, self._now

    def shorten(self, past: int, length: int) -> None:
        """Heads lie one behind the other, so each moves when there are fewer tokens."""
        width = self._facts.head_dim * self._item
        for buffer in self._now:
            whole = np.empty((self._facts.kv_heads, past, width), np.uint8)
            self._device.download(buffer, whole)
            self._device.upload(np.ascontiguousarray(whole[:, :length]), buffer)


CACHES: dict[str, Callable[..., KvCache]] = {
    "static": _Static,
    "concat": _Growing,
}
"""Forms of cache by decoder flavour; the others are for other engines."""

__all__ = ["CACHES", "Inputs", "KvCache", "make_cache"]
