"""Whether a decoder in 4 bits may round activations to int8 as well.

Products of int8 are three times as fast, but a model whose activations have a few huge values can
lose its way (onnxruntime issue 29849). So both are asked the same text, and the fast one is taken
only where it says the same. Parity of the whole bundle comes after, and has the last word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laco_export.targets.onnxruntime_weights import EXACT_LEVEL, FASTEST_LEVEL, set_level
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import LanguageFacts
from laco_runtimes.prompt import encode_text, load_tokenizer

TEXT = (
    "A picture shows a kitchen table. On the left there is a red cup, on the right a plate with "
    "two apples and 1 knife. Which of them can you drink from? The cup. How much is 7 + 5? 12."
)
"""What the decoders read. Long enough for huge activations, which come with the first tokens."""

MAX_TOKENS = 48

MIN_SAME = 0.98
"""Positions at which both must have the same likeliest token, unless its lead is below `TIE`."""
MAX_KL = 2e-3
"""Mean divergence; a tenth of what 4 bits themselves are allowed."""
TIE = 0.05


def choose_level(
    path: Path, embed: Path, tokenizer: Path, facts: LanguageFacts, form: DecoderForm
) -> int:
    """Set the fastest accuracy level at which a decoder says what it says with fp32 activations.

    Args:
        path: decoder that `write_nbits` wrote, at the fastest level.
        embed: graph of the embeddings.
        tokenizer: `tokenizer.json`.
        facts: shapes of the language model.
        form: of the decoder.

    Returns:
        The level that the file now has.
    """
    ids = encode_text(load_tokenizer(tokenizer), TEXT)[:MAX_TOKENS]
    ids = [one for one in ids if one < facts.vocab_size]
    fast = _logits(path, embed, ids, facts, form)
    set_level(path, EXACT_LEVEL)
    exact = _logits(path, embed, ids, facts, form)
    same, divergence = _agreement(exact, fast)
    if same < MIN_SAME or divergence > MAX_KL:
        return EXACT_LEVEL
    set_level(path, FASTEST_LEVEL)
    return FASTEST_LEVEL


def _logits(
    path: Path, embed: Path, ids: list[int], facts: LanguageFacts, form: DecoderForm
) -> NDArray[np.float32]:
    """After every token, [tokens, V]."""
    from laco_runtimes.engines.onnxruntime import open_language

    language = open_language(path, embed, facts, form)
    return np.stack([language.step(one) for one in ids])


def _agreement(exact: NDArray[np.float32], fast: NDArray[np.float32]) -> tuple[float, float]:
    """Share of positions with the same likeliest token, and mean KL divergence."""
    best = np.sort(exact, axis=1)[:, -2:]
    same = (exact.argmax(1) == fast.argmax(1)) | (best[:, 1] - best[:, 0] < TIE)
    log_p, log_q = _log_softmax(exact), _log_softmax(fast)
    return float(same.mean()), float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    total: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return total


__all__ = ["choose_level"]
