"""Batches of samples of like length, with and without images apart.

After LLaVA-NeXT llava/train/llava_trainer.py (`group_by_modality_length`). There a batch is
balanced between the processes; here it is sorted, so that what is computed side by side is of like
length in each process and in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from laco_runtimes.errors import ConfigError


class LengthGroupedSampler(Sampler[int]):
    """Every sample once, in an order that depends on the seed and the epoch alone.

    A batch is drawn at random from the samples with images or from those without, and sorted, the
    longest first. What is left of both kinds makes the last batches.

    Args:
        lengths: tokens of each sample; below 0 for one of text alone (`TrainingSet.lengths`).
        batch_size: samples of an optimizer step, of all processes and accumulation steps together.
        seed: of the order.

    Raises:
        ConfigError: no samples, or a batch size below 1.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        if not len(lengths) or batch_size < 1:
            raise ConfigError(
                f"{len(lengths)} samples cannot be put in batches of {batch_size}. "
                "Give at least one sample and a batch size of at least 1."
            )
        self._lengths = np.asarray(lengths, np.int64)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Another order for the epoch that comes, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self._epoch])
        order = rng.permutation(len(self._lengths))
        batches: list[NDArray[np.int64]] = []
        rests: list[NDArray[np.int64]] = []
        for is_kind in (self._lengths[order] > 0, self._lengths[order] <= 0):
            of_kind = order[is_kind]
            full = len(of_kind) // self._batch_size * self._batch_size
            batches += np.split(of_kind[:full], range(self._batch_size, full, self._batch_size))
            rests.append(of_kind[full:])
        batches = [batch for batch in batches if len(batch)]
        last = np.concatenate(rests)
        ordered = [batches[i] for i in rng.permutation(len(batches))]
        ordered += [last[: self._batch_size], last[self._batch_size :]]
        for batch in ordered:
            # A stable sort: of equal lengths the order is that of the draw on every machine.
            yield from batch[np.argsort(-np.abs(self._lengths[batch]), kind="stable")].tolist()


__all__ = ["LengthGroupedSampler"]
