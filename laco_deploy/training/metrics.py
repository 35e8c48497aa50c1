"""Exact match and ANLS of answers, the two metrics of document question answering."""

from __future__ import annotations

from collections.abc import Sequence

ANLS_THRESHOLD = 0.5


def normalise(text: str) -> str:
    """Case and outer or repeated white space do not count."""
    return " ".join(text.lower().split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 where the answer is one of the references, else 0.0; see `normalise`."""
    return float(normalise(answer) in {normalise(reference) for reference in references})


def anls(answer: str, references: Sequence[str], threshold: float = ANLS_THRESHOLD) -> float:
    """Normalised Levenshtein similarity to the nearest reference, 0 to 1 (mean = ANLS).

    1 - d / length of the longer text, and 0 where d / length reaches the threshold (Biten et al.,
    "Scene Text Visual Question Answering", ICCV 2019, equation 1).
    """
    return max((_similarity(answer, reference, threshold) for reference in references), default=0.0)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: fewest characters to insert, delete or replace."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _similarity(answer: str, reference: str, threshold: float) -> float:
    one, other = normalise(answer), normalise(reference)
    longer = max(len(one), len(other))
    if not longer:
        return 1.0
    distance = edit_distance(one, other) / longer
    return 1.0 - distance if distance < threshold else 0.0


__all__ = ["ANLS_THRESHOLD", "anls", "edit_distance", "exact_match", "normalise"]
