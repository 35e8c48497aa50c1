"""What decoders on OpenVINO have in common, wherever they keep the KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.base import Floats, cannot_score, engine_errors

if TYPE_CHECKING:
    from openvino import InferRequest

Embed = Callable[[Sequence[int]], Floats]
"""Token ids to embeddings, [len(ids), D]."""

RETRY = "Check the free memory, or export the model again."


class Inference:
    """A compiled graph that is compiled anew after one of its inferences has failed.

    Where memory ends in the middle, OpenVINO's CPU plugin (2026.4) keeps what it had half made for
    these shapes, "Broken promise", and shapes of nodes behind it: the next inferences fail as well,
    of any shape, though there is memory again.
    """

    def __init__(
        self,
        make: Callable[[], InferRequest],
        bind: Callable[[InferRequest], None] = lambda request: None,
    ) -> None:
        """Compile.

        Args:
            make: reads and compiles.
            bind: sets what stays from inference to inference.
        """
        self._make, self._bind = make, bind
        self._request: InferRequest | None = None
        self.request()

    def request(self) -> InferRequest:
        """The one in force."""
        if self._request is None:
            request = self._make()
            self._bind(request)
            self._request = request
        return self._request

    def run(self, inputs: Mapping[str, NDArray[Any]], output: str) -> Floats:
        """One inference; a copy of an output, which the next inference writes over."""
        request = self.request()
        try:
            return _run(request, inputs, output)
        except Exception:
            self._request = None
            raise


def _run(request: InferRequest, inputs: Mapping[str, NDArray[Any]], output: str) -> Floats:
    """Arrays stay until it returns, which the mapping sees to.

    Never by `infer`: where memory ends in the middle, that of 2026.4 returns as if all were well,
    and the output is still the last one's. `wait` raises.
    """
    from openvino import Tensor

    for name, array in inputs.items():
        request.set_tensor(name, Tensor(array, shared_memory=True))
    request.start_async()
    request.wait()
    return np.array(request.get_tensor(output).data, np.float32)


class Language(ABC):
    """A `LanguageModel` but for its cache."""

    def __init__(self, embed: Embed, *, scores: bool) -> None:
        self._embed, self._scores = embed, scores
        self._length = 0

    @property
    def length(self) -> int:
        """See `LanguageModel`."""
        return self._length

    def embed(self, ids: Sequence[int]) -> Floats:
        """See `LanguageModel`."""
        with engine_errors("embedding tokens with OpenVINO", RETRY):
            return self._embed(ids)  # [sequence, D]

    def prefill(self, embeds: Floats) -> Floats:
        """See `LanguageModel`."""
        logits: Floats = self._append(embeds, 1)[0]
        return logits

    def step(self, token: int) -> Floats:
        """See `LanguageModel`."""
        return self.prefill(self.embed([token]))

    def score(self, tokens: Sequence[int]) -> Floats:
        """See `LanguageModel`."""
        if not self._scores:
            raise cannot_score()
        return self._append(self.embed(tokens), len(tokens))

    @abstractmethod
    def _append(self, embeds: Floats, wanted: int) -> Floats:
        """Logits of the last `wanted` positions, [wanted, V]."""

    @abstractmethod
    def rewind(self, length: int) -> None:
        """See `LanguageModel`."""


__all__ = ["RETRY", "Embed", "Inference", "Language"]
