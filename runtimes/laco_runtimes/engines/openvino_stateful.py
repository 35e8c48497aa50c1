"""A decoder that keeps its KV cache as state, as it stands in the file: for any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.base import (
    Floats,
    check_rewind,
    check_room,
    engine_errors,
)
from laco_runtimes.engines.openvino_graph import FIRST_LOGIT
from laco_runtimes.engines.openvino_language import RETRY, Embed, Inference, Language
from laco_runtimes.errors import EngineError

if TYPE_CHECKING:
    from openvino import InferRequest

MAX_FORGOTTEN = 64
"""Tokens that a rewind may leave in the KV cache under a mask: what drafts of a few hundred tokens
leave behind. Attention reads them in vain, a fraction of a percent of a step."""


class StatefulLanguage(Language):
    """The KV cache is the state of the decoder's inference request.

    A rewind leaves what it forgets where it is, under a mask: to write states anew takes as long as
    a step. Only where that would be more than `MAX_FORGOTTEN` tokens are the states made smaller.
    """

    def __init__(
        self,
        embed: Embed,
        decoder: Callable[[], InferRequest],
        max_positions: int,
        *,
        scores: bool,
    ) -> None:
        super().__init__(embed, scores=scores)
        self._longest = max_positions
        # Inputs are views of arrays that stay, so that a step makes no more than it needs.
        self._mask = np.ones((1, max_positions + MAX_FORGOTTEN), np.int64)
        self._positions = np.arange(max_positions, dtype=np.int64)[None]
        self._first = np.full(1, -1, np.int64)
        self._decoder = Inference(decoder, self._bind)
        self._held = 0
        """Tokens in the states, forgotten ones among them."""
        self._whole = True
        """The last pass came to its end, so all states hold the same tokens."""

    def _bind(self, request: InferRequest) -> None:
        from openvino import Tensor

        request.set_tensor("beam_idx", Tensor(np.zeros(1, np.int32)))
        if self._scores:
            request.set_tensor(FIRST_LOGIT, Tensor(self._first, shared_memory=True))

    def _append(self, embeds: Floats, wanted: int) -> Floats:
        start, total = self._length, self._length + len(embeds)
        check_room(total, self._longest)
        held = self._held + len(embeds)
        self._first[0] = -wanted
        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.ascontiguousarray(embeds[None], np.float32),  # [1, sequence, D]
            "attention_mask": self._mask[:, :held],
            "position_ids": self._positions[:, start:total],
        }
        self._whole = False
        with engine_errors("decoding with OpenVINO", RETRY):
            logits: Floats = self._decoder.run(inputs, "logits")[0]
        self._whole = True
        self._length, self._held = total, held
        return logits

    def rewind(self, length: int) -> None:
        """See `LanguageModel`."""
        check_rewind(length, self._length)
        if length == 0:
            self._decoder.request().reset_state()
            self._mask[:] = 1
            self._held, self._whole = 0, True
        elif not self._whole:
            raise EngineError(
                "the last pass failed, and what the KV cache holds is not known. "
                "Start a new dialogue."
            )
        elif length < self._length:
            kept = np.flatnonzero(self._mask[0, : self._held])[:length]
            if self._held - length > MAX_FORGOTTEN:
                with engine_errors("shortening the KV cache with OpenVINO", RETRY):
                    self._shorten(kept)
            else:
                self._mask[0, kept[-1] + 1 : self._held] = 0
        self._length = length

    def _shorten(self, kept: NDArray[np.int64]) -> None:
        """Write the states anew. OpenVINO gives them in their declared order of axes.

        A device may hold them permuted or in 8 bits; both are undone on reading and redone on
        writing (tried with the CPU plugin of 2026.4, fused attention, caches of f32, f16 and u8).
        """
        from openvino import Tensor

        self._whole = False
        for state in self._decoder.request().query_state():
            whole = state.state  # [1, heads, tokens, dim]
            batch, heads, tokens, dim = whole.shape
            if tokens != self._held:
                raise EngineError(
                    f"the KV cache of this device has shape {list(whole.shape)} for "
                    f"{self._held} tokens and cannot be shortened. Start a new dialogue."
                )
            dense = Tensor(whole.element_type, [batch, heads, len(kept), dim])
            np.take(whole.data, kept, axis=2, out=dense.data)
            state.state = dense
        self._mask[:] = 1
        self._held, self._whole = len(kept), True


__all__ = ["MAX_FORGOTTEN", "StatefulLanguage"]
