"""A decoder whose KV cache lies in blocks outside of it: OpenVINO's paged attention, on a CPU.

The file holds the cache as state, for `openvino_genai` and for any device; it is changed in memory.
A prefill is 7 to 13 % shorter than with state and a step 4 % (docs/runtime.md), nothing is computed
for a mask, and a rewind is a smaller number. Blocks are OpenVINO's, PagedAttentionExtension in
src/core/include/openvino/op/paged_attention.hpp.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.base import Floats, check_rewind, check_room, engine_errors
from laco_runtimes.engines.openvino_graph import FIRST_LOGIT
from laco_runtimes.engines.openvino_head import by_position
from laco_runtimes.engines.openvino_language import RETRY, Embed, Inference, Language

if TYPE_CHECKING:
    from openvino import InferRequest, Model, Tensor

MACHINES = frozenset({"x86_64", "amd64"})
"""Where OpenVINO's CPU plugin has the operator, by `platform.machine()`; Arm needs SVE for it."""

BLOCK = 32
"""Tokens in a block of the CPU plugin."""

FIRST_BLOCKS = 32
"""That a cache begins with; they double."""


def page_attention(model: Model, layers: int) -> Model | None:
    """A copy of a decoder with its cache as inputs, and tokens in place of [batch, sequence].

    Args:
        model: behind `keep_positions`, whose slices cut tokens in the copy; stays as it is.
        layers: of the decoder.

    Returns:
        The copy, which shares the weights; None where not every layer can become paged attention.
    """
    if platform.machine().lower() not in MACHINES:
        return None
    from openvino import PartialShape
    from openvino import opset13 as ops

    try:
        from openvino._offline_transformations import paged_attention_transformation
    except ImportError:  # a module without promises
        return None
    paged = model.clone()
    try:
        paged_attention_transformation(paged)
    except RuntimeError:
        return None
    nodes = paged.get_ordered_ops()
    kinds = [node.get_type_name() for node in nodes]
    if kinds.count("PagedAttentionExtension") != layers or "ReadValue" in kinds:
        return None
    tokens = ops.constant(np.zeros(1, np.int64)).output(0)  # the axis
    for node in nodes:
        if node.get_type_name() == "Slice":
            begin = node.input_value(1).get_node()
            if begin.get_type_name() == "Parameter" and FIRST_LOGIT in begin.output(0).names:
                node.input(4).replace_source_output(tokens)
    # The transformation forgets the width, and an inference that fails over a wrong one leaves the
    # request with shapes that spoil the next.
    width = model.input("inputs_embeds").partial_shape[2]
    paged.input("inputs_embeds").get_node().set_partial_shape(PartialShape([-1, width]))
    paged.validate_nodes_and_infer_types()
    return paged


class PagedLanguage(Language):
    """One sequence, in blocks that follow one another."""

    def __init__(
        self, embed: Embed, decoder: Callable[[], InferRequest], max_positions: int
    ) -> None:
        super().__init__(embed, scores=True)
        self._longest = max_positions
        self._caches: dict[str, Tensor] = {}
        self._decoder = Inference(decoder, self._bind)
        ports = self._decoder.request().get_compiled_model().inputs
        caches = [port for port in ports if "_cache." in port.any_name]
        self._blocks_of = {
            port.any_name: (port.element_type, list(port.partial_shape.get_max_shape())[1:])
            for port in caches
        }
        """Of each cache: its type, and [heads, tokens, width] of a block."""
        # What grows with the dialogue is a view of these.
        self._positions = np.arange(max_positions, dtype=np.int64)
        self._blocks = np.arange(-(-max_positions // BLOCK), dtype=np.int32)
        self._room = 0
        """Blocks that there are."""

    def _bind(self, request: InferRequest) -> None:
        for name, tensor in self._caches.items():
            request.set_tensor(name, tensor)

    def _append(self, embeds: Floats, wanted: int) -> Floats:
        start, total = self._length, self._length + len(embeds)
        check_room(total, self._longest)
        used = -(-total // BLOCK)
        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.ascontiguousarray(embeds, np.float32),  # [sequence, D]
            "position_ids": self._positions[start:total],
            FIRST_LOGIT: np.array([-wanted], np.int64),
            "past_lens": np.array([start], np.int32),
            "subsequence_begins": np.array([0, len(embeds)], np.int32),
            "block_indices": self._blocks[:used],
            "block_indices_begins": np.array([0, used], np.int32),
            "max_context_len": np.array(total, np.int32),
        }
        with engine_errors("decoding with OpenVINO", RETRY):
            self._make_room(used)
            found = self._decoder.run(inputs, "logits")
        # A pass that fails has written behind the tokens that count, and is forgotten with that.
        self._length = total
        return by_position(found)

    def rewind(self, length: int) -> None:
        """See `LanguageModel`."""
        check_rewind(length, self._length)
        self._length = length

    def _make_room(self, blocks: int) -> None:
        """All new caches or, where memory ends, the old ones."""
        from openvino import Coordinate, Shape, Tensor

        if blocks <= self._room:
            return
        room = min(max(blocks, 2 * self._room, FIRST_BLOCKS), len(self._blocks))
        larger: dict[str, Tensor] = {}
        for name, (kind, block) in self._blocks_of.items():
            larger[name] = Tensor(kind, Shape([room, *block]))
            if name in self._caches:
                old = self._caches[name]
                old.copy_to(Tensor(larger[name], Coordinate([0] * 4), Coordinate(list(old.shape))))
        self._caches, self._room = larger, room
        self._bind(self._decoder.request())


__all__ = ["PagedLanguage", "page_attention"]
