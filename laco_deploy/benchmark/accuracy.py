"""Accuracies that somebody else measured, to be put beside the times."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

from pydantic import Field, RootModel, ValidationError

from laco_runtimes.errors import LacoError

Accuracy = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ByBenchmark = Annotated[dict[str, Accuracy], Field(min_length=1)]


class AccuracyFileError(LacoError, ValueError):
    """A file of accuracies that cannot be read as such."""

    exit_code = 2


class _Accuracies(RootModel[dict[str, Accuracy | ByBenchmark]]):
    pass


def read_accuracies(path: Path) -> dict[str, float]:
    """Accuracy by variant, from a JSON object such as
    `{"laco": 61.2, "uncompressed": {"TextVQA": 62.0, "GQA": 64.0}}`.

    Whatever the unit is, percent or share, it must be the same everywhere. Several benchmarks of a
    variant become their mean.

    Raises:
        AccuracyFileError: no such file, no such object, or variants judged by different benchmarks,
            whose means cannot be compared.
    """
    advice = 'Give a file such as {"laco": 61.2, "uncompressed": 63.0}.'
    try:
        found = _Accuracies.model_validate_json(path.read_bytes()).root
    except OSError as error:
        raise AccuracyFileError(f"'{path}' cannot be read: {error.strerror}. {advice}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise AccuracyFileError(
            f"'{path}' holds no accuracies: {place}: {first['msg']}. {advice}"
        ) from error
    judged_by = {frozenset(one) if isinstance(one, dict) else None for one in found.values()}
    if len(judged_by) > 1:
        raise AccuracyFileError(
            f"'{path}' judges its variants by different benchmarks. Give the same ones to each."
        )
    return {
        name: statistics.fmean(one.values()) if isinstance(one, dict) else one
        for name, one in found.items()
    }


__all__ = ["AccuracyFileError", "read_accuracies"]
