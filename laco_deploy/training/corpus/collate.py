"""Samples of a batch as the arguments of the model's `forward`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from laco_deploy.training.corpus.chat import IGNORE_INDEX
from laco_deploy.training.corpus.record import Broken
from laco_deploy.training.corpus.training_set import Encoded


@dataclass(frozen=True, slots=True)
class Collator:
    """Pad a batch on the right. Broken samples are left out and listed under `broken`."""

    pad_token_id: int

    def __call__(self, batch: Sequence[Encoded | Broken]) -> dict[str, Any]:
        """Stack what a `TrainingSet` gives.

        Returns:
            input_ids, labels and attention_mask [batch, sequence]; where a sample has an image or a
            video pixel_values [T, 3, S, S], image_sizes [V, 2] and num_tiles [V]; where one has a
            video is_video [V]; where one is broken `broken`, a list of `Broken`. Of a batch of
            broken samples alone one row of padding without labels remains, for a process that
            trains with others has to take its step.
        """
        whole = [item for item in batch if isinstance(item, Encoded)]
        broken = [item for item in batch if isinstance(item, Broken)]
        padding = torch.full((2,), self.pad_token_id)
        ids = [item.ids for item in whole] or [padding]
        labels = [item.labels for item in whole] or [torch.full((2,), IGNORE_INDEX)]
        values: dict[str, Any] = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        for name, source in (
            ("pixel_values", "pixels"),
            ("image_sizes", "image_sizes"),
            ("num_tiles", "num_tiles"),
            ("is_video", "is_video"),
        ):
            parts: list[Tensor] = [
                part for item in whole if (part := getattr(item, source)) is not None
            ]
            if parts:
                values[name] = torch.cat(parts)
        if "is_video" in values and not values["is_video"].any():
            del values["is_video"]
        if broken:
            values["broken"] = broken
        return values


__all__ = ["Collator"]
