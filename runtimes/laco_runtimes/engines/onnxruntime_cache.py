"""KV caches in ONNX Runtime's memory: one buffer that is written in place, or one that grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.base import check_room
from laco_runtimes.graphs import CacheDType, cache_names
from laco_runtimes.manifest import LanguageFacts

if TYPE_CHECKING:
    from onnxruntime import IOBinding, OrtValue

NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""What holds the bits of a cache on the host; numpy has no bfloat16."""

ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
"""`onnx.TensorProto.DataType`."""

FIRST_CAPACITY = 1024
"""Tokens that a buffer on the host holds at first; then twice as many, and so on."""


class Cache(Protocol):
    """Keys and values of all layers, [1, kv_heads, tokens, head_dim] each."""

    def bind(self, binding: IOBinding, total: int) -> None:
        """Give a pass its past and a place for its present, which will hold `total` tokens."""

    def accept(self, binding: IOBinding) -> None:
        """Take what a pass gave: the outputs behind the logits."""

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""


class SharedCache:
    """One buffer per tensor, bound as past and as present (`past_present_share_buffer`).

    Nothing is copied from step to step, and a rewind is a smaller number. `GroupQueryAttention`
    reads as many tokens of the buffer as the attention mask has, and writes behind them.

    On a GPU the buffers hold `max_positions` tokens from the start. On the host they begin small
    and double, because there memory is shared with all else.

    Args:
        facts: layers, heads and positions.
        dtype: of keys and values.
        device: `cpu` or `cuda`.
    """

    def __init__(self, facts: LanguageFacts, dtype: CacheDType, device: str) -> None:
        self._dtype, self._device = dtype, device
        self._heads, self._dim = facts.kv_heads, facts.head_dim
        self._longest = facts.max_positions
        self._past = cache_names(facts.layers, "past_key_values")
        self._present = cache_names(facts.layers, "present")
        self._capacity = 0
        self._values: list[OrtValue] = []
        self._arrays: list[NDArray[np.generic]] = []  # the same memory, on the host
        self._bound: IOBinding | None = None

    def bind(self, binding: IOBinding, total: int) -> None:
        """See `Cache`.

        Raises:
            EngineError: more tokens than the model has positions for.
        """
        check_room(total, self._longest)
        if total > self._capacity:
            self._bound = None
            self._grow(total)
        elif binding is self._bound:
            return
        self._bound = binding
        for past, present, value in zip(self._past, self._present, self._values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)

    def accept(self, binding: IOBinding) -> None:
        """They are the buffers themselves."""

    def rewind(self, length: int) -> None:
        """What lies behind is never read, and is written over."""

    def _grow(self, total: int) -> None:
        from onnxruntime import OrtValue

        # All of it is made before anything is taken: memory may end in the middle.
        if self._device != "cpu":
            capacity = self._longest
            shape = [1, self._heads, capacity, self._dim]
            self._values = [
                OrtValue.ortvalue_from_shape_and_type(shape, ONNX_TYPES[self._dtype], self._device)
                for _ in self._past
            ]
            self._capacity = capacity
            return
        held, capacity = self._capacity, max(self._capacity, FIRST_CAPACITY)
        while capacity < total:
            capacity *= 2
        capacity = min(capacity, self._longest)
        shape = [1, self._heads, capacity, self._dim]
        arrays = [np.zeros(shape, NUMPY_TYPES[self._dtype]) for _ in self._past]
        for array, before in zip(arrays, self._arrays, strict=False):
            array[:, :, :held] = before
        self._values = [
            OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_TYPES[self._dtype])
            for array in arrays
        ]
        self._arrays, self._capacity = arrays, capacity


class GrowingCache:
    """Every pass makes a longer cache (flavours `stateful` and `concat`).

    Args:
        facts: layers, heads and positions.
        dtype: of keys and values.
        device: `cpu` or `cuda`.
    """

    def __init__(self, facts: LanguageFacts, dtype: CacheDType, device: str) -> None:
        self._dtype, self._device = NUMPY_TYPES[dtype], device
        self._onnx_type = ONNX_TYPES[dtype]
        self._shape = (1, facts.kv_heads, 0, facts.head_dim)
        self._past = cache_names(facts.layers, "past_key_values")
        self._present = cache_names(facts.layers, "present")
        self._values = self._empty()

    def bind(self, binding: IOBinding, total: int) -> None:
        """See `Cache`."""
        for name, value in zip(self._past, self._values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in self._present:
            binding.bind_output(name, self._device)

    def accept(self, binding: IOBinding) -> None:
        """See `Cache`."""
        self._values = binding.get_outputs()[1:]

    def rewind(self, length: int) -> None:
        """See `Cache`. Copies what is kept."""
        if length == 0:
            self._values = self._empty()
        elif length < self._values[0].shape()[2]:
            self._values = [self._value(one.numpy()[:, :, :length]) for one in self._values]

    def _empty(self) -> list[OrtValue]:
        return [self._value(np.zeros(self._shape, self._dtype)) for _ in self._past]

    def _value(self, array: NDArray[np.generic]) -> OrtValue:
        from onnxruntime import OrtValue

        array = np.ascontiguousarray(array)
        if self._device == "cpu":
            return OrtValue.ortvalue_from_numpy_with_onnx_type(array, self._onnx_type)
        return OrtValue.ortvalue_from_numpy(array, self._device)


CACHES: dict[str, type[SharedCache] | type[GrowingCache]] = {
    "contrib": SharedCache,
    "stateful": GrowingCache,
    "concat": GrowingCache,
}
"""By decoder flavour."""

__all__ = ["CACHES", "Cache", "GrowingCache", "SharedCache"]
