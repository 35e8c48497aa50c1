"""`avg_pool`: the mean of each window and nothing else.

The pooling of Gemma 3 (transformers/models/gemma3/modeling_gemma3.py, `Gemma3MultiModalProjector`)
without the norm and the matrix behind it, which lead into the language model's width.
"""

from __future__ import annotations

from torch import Tensor

from laco_deploy.model.mergers.base import Merger
from laco_deploy.model.mergers.grid import window_mean


class AvgPoolMerger(Merger):
    """r x r average pooling; no parameters."""

    def branch(self, tokens: Tensor, stacked: Tensor) -> Tensor:
        """The mean of each window."""
        return window_mean(stacked, self.ratio)


__all__ = ["AvgPoolMerger"]
