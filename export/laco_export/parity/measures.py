"""Two sets of answers to figures. The first is the reference: its tokens were fed to both.

Up to the first token at which the other would have said something else, both saw the same; so a
free greedy run ends its agreement exactly there, and no second run is needed to know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from laco_export.protocols import Floats

Doubles = NDArray[np.float64]

MEASURES: dict[str, str] = {
    "pixels_max": "pixel value, max difference",
    "cosine_min": "visual token cosine, min",
    "cosine_p01": "visual token cosine, p1",
    "cosine_mean": "visual token cosine, mean",
    "logits_max": "logits, max difference",
    "logits_p999": "logits, p99.9 difference",
    "cache_max": "KV cache vs full pass, max",
    "kl_mean": "next-token KL, mean",
    "kl_p999": "next-token KL, p99.9",
    "top1": "same top-1 token, share",
    "exact": "same greedy answer, share",
    "top5": "other token in top 5, share",
    "fdt": "first other token, place",
}
"""What each figure is, for people; docs/export.md says it at length."""


@dataclass(slots=True)
class Figures:
    """What was measured, and on which image each figure was worst."""

    values: dict[str, float] = field(default_factory=dict)
    worst: dict[str, str] = field(default_factory=dict)
    identical: int = 0
    """Answers that are the reference's, token for token."""
    ties: int = 0
    """Positions with another likeliest token at a tie of the reference."""


def cosines(reference: Floats, found: Floats) -> Doubles:
    """Of every visual token, [tiles, N', D] twice -> [tiles, N']."""
    ours, theirs = found.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    result: Doubles = (ours * theirs).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return result


def visual_figures(reference: Floats, found: Floats, names: Sequence[str]) -> Figures:
    """Compare visual tokens, [tiles, N', D], tile by tile; `names` are those of the tiles."""
    each = np.stack(
        [cosines(one, other) for one, other in zip(reference, found, strict=True)]
    )  # [tiles, N']
    least = each.min(axis=1)
    return Figures(
        {
            "cosine_min": float(each.min()),
            "cosine_p01": float(np.percentile(each, 1)),
            "cosine_mean": float(each.mean()),
        },
        # argmin of anything with a NaN in it is that NaN
        {"cosine_min": names[int(least.argmin())]},
    )


def language_figures(
    reference: Floats,
    found: Floats,
    lengths: Sequence[int],
    names: Sequence[str],
    *,
    tie_margin: float,
) -> Figures:
    """Compare logits that followed the same tokens.

    Args:
        reference: [answers, tokens, V].
        found: the same of the other.
        lengths: how many tokens of each answer count.
        names: of the questions.
        tie_margin: two best logits of the reference that are closer than this are a tie, and
            either is as good an answer.
    """
    answers = [
        _answer(reference[row, :length], found[row, :length], tie_margin)
        for row, length in enumerate(lengths)
    ]
    kl = np.concatenate([one.kl for one in answers])
    agreed = np.concatenate([one.agreed for one in answers])
    first = np.array([one.first / length for one, length in zip(answers, lengths, strict=True)])
    largest = np.array([one.logits_max for one in answers])
    after_prompt = np.concatenate([one.after_prompt for one in answers])
    return Figures(
        {
            "logits_max": float(largest.max()),
            "logits_p999": float(np.percentile(after_prompt, 99.9)),
            "kl_mean": float(kl.mean()),
            "kl_p999": float(np.percentile(kl, 99.9)),
            "top1": float(agreed.mean()),
            "exact": float((first == 1.0).mean()),
            "top5": float(np.mean([one.top5 for one in answers])),
            "fdt": float(first.mean()),
        },
        {
            "logits_max": names[int(largest.argmax())],
            "kl_p999": names[int(np.argmax([one.kl.max() for one in answers]))],
            "exact": names[int(first.argmin())],
        },
        identical=sum(one.identical for one in answers),
        ties=sum(one.ties for one in answers),
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    kl: Doubles  # [tokens]
    agreed: NDArray[np.bool_]  # [tokens]
    first: int
    logits_max: float
    after_prompt: Floats  # [V]
    identical: bool
    top5: bool
    ties: int


def _answer(reference: Floats, found: Floats, tie_margin: float) -> _Answer:
    """Of one answer, [tokens, V] twice."""
    difference = np.abs(found - reference)
    theirs, ours = reference.argmax(-1), found.argmax(-1)  # [tokens]
    second = np.partition(reference, -2, axis=-1)[:, -2]
    ties = (reference.max(-1) - second < tie_margin) & (theirs != ours)
    agreed = (theirs == ours) | ties
    others = np.flatnonzero(~agreed)
    parts = np.flatnonzero(theirs != ours)
    top5 = True
    if len(parts):
        place = parts[0]
        top5 = bool(
            (reference[place] > reference[place, ours[place]]).sum() < 5
            and (found[place] > found[place, theirs[place]]).sum() < 5
        )
    return _Answer(
        kl=_divergence(reference, found),
        agreed=agreed,
        first=int(others[0]) if len(others) else len(reference),
        logits_max=float(difference.max()),
        after_prompt=difference[0],
        identical=not len(parts),
        top5=top5,
        ties=int(ties.sum()),
    )


def _divergence(reference: Floats, found: Floats) -> Doubles:
    """KL(reference || found) in nats, [tokens]."""
    result = np.empty(len(reference))
    for place, (one, other) in enumerate(zip(reference, found, strict=True)):
        theirs, ours = _log_softmax(one), _log_softmax(other)
        result[place] = (np.exp(theirs) * (theirs - ours)).sum()
    return result


def _log_softmax(logits: Floats) -> Doubles:
    shifted = logits.astype(np.float64) - logits.max()
    result: Doubles = shifted - np.log(np.exp(shifted).sum())
    return result


__all__ = ["MEASURES", "Figures", "cosines", "language_figures", "visual_figures"]
