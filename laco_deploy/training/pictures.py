"""Every micro batch holds a picture, so that every process runs every part of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laco_deploy.model.config import LacoConfig

Batch = dict[str, Any]
IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class WithPicture:
    """A collator that adds an empty picture to a batch without any.

    Processes exchange the gradients (DDP) or the weights (FSDP2) of each part together, and would
    wait for ever on one that skips the encoder. LLaVA feeds a picture of zeros to text alone for
    the same reason. Here its tokens stand behind the text, where causal attention keeps them out of
    sight, and none is supervised: the loss stays as it is, and the encoder's gradient is zero.

    Args:
        collate: makes the batch, `pixel_values` only where there is an image.
        image_token_id: of the model.
        pad_token_id: fills the other rows.
        image_size: S.
        tokens: that one tile becomes, with its newline.
    """

    collate: Callable[[Sequence[Any]], Batch]
    image_token_id: int
    pad_token_id: int
    image_size: int
    tokens: int

    @classmethod
    def of(
        cls, config: LacoConfig, pad_token_id: int, collate: Callable[[Sequence[Any]], Batch]
    ) -> WithPicture:
        """The collator for a model."""
        side = config.image_size
        tokens = config.token_layout.image_tokens((side, side), 1)
        return cls(collate, config.image_token_id, pad_token_id, side, tokens)

    def __call__(self, samples: Sequence[Any]) -> Batch:
        """Collate samples; see the class."""
        batch = self.collate(samples)
        if batch.get("pixel_values") is not None:
            return batch
        rows = len(batch["input_ids"])
        first = torch.zeros(rows, self.tokens, dtype=torch.bool)
        first[0] = True
        image = torch.where(first, self.image_token_id, self.pad_token_id)
        added = {
            "input_ids": image,
            "attention_mask": first,
            "labels": torch.full_like(image, IGNORE_INDEX),
        }
        for name, columns in added.items():  # [rows, length + tokens]
            batch[name] = torch.cat([batch[name], columns.to(batch[name].dtype)], dim=1)
        # After normalisation zero is the mean colour.
        batch["pixel_values"] = torch.zeros(1, 3, self.image_size, self.image_size)
        return batch


__all__ = ["WithPicture"]
