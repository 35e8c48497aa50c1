"""Runs a decoder graph beside transformers' Qwen2 over the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laco_deploy.model import LacoForConditionalGeneration

Floats = NDArray[np.float32]
Decode = Callable[[Floats, NDArray[np.int64], NDArray[np.int64]], Floats]
"""`inputs_embeds`, `attention_mask` and `position_ids` of the next pass to its logits, [B, V]."""

PROMPT, STEPS = 9, 3


@dataclass(frozen=True)
class Conversation:
    """Two rows of tokens; the second starts with two of padding."""

    embeds: Tensor  # [2, PROMPT + STEPS, D]
    mask: Tensor  # [2, PROMPT + STEPS]
    positions: Tensor
    expected: Tensor  # transformers' logits at every position, [2, PROMPT + STEPS, V]


def conversation(model: LacoForConditionalGeneration) -> Conversation:
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.text.vocab_size
    ids = torch.randint(4, vocabulary, (2, PROMPT + STEPS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    return Conversation(embeds, mask, positions, logits)


def largest_difference(talk: Conversation, decode: Decode) -> float:
    """Prefill, then step by step; the largest absolute difference of any logit."""
    differences, start = [], 0
    for end in range(PROMPT, PROMPT + STEPS + 1):
        logits = decode(
            talk.embeds[:, start:end].numpy(),
            talk.mask[:, :end].numpy(),
            talk.positions[:, start:end].numpy(),
        )
        differences.append(np.abs(logits - talk.expected[:, end - 1].numpy()).max())
        start = end
    return float(max(differences))
