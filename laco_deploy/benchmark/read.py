"""Read a `bench.json` back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from laco_deploy.benchmark.schema import SCHEMA_VERSION, BenchReport
from laco_runtimes.errors import LacoError

LARGEST = 64 * 2**20
"""Bytes; a report of a hundred variants and a hundred rounds has about one megabyte."""


class ReportFileError(LacoError, ValueError):
    """A file that is no report of this version."""

    exit_code = 2


def read_report(path: Path) -> BenchReport:
    """Read and check a report.

    Raises:
        ReportFileError: no such file, no report, or one of another schema version.
    """
    advice = "Give a file that `laco bench` wrote."
    try:
        if path.stat().st_size > LARGEST:
            raise ReportFileError(f"'{path}' is too large for a report. {advice}")
        text = path.read_bytes()
    except OSError as error:
        raise ReportFileError(f"'{path}' cannot be read: {error.strerror}. {advice}") from error
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise ReportFileError(f"'{path}' is not JSON. {advice}") from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        was = "has no schema_version" if version is None else f"has schema_version {version!r}"
        raise ReportFileError(
            f"'{path}' {was}, and {SCHEMA_VERSION} is read. Measure again with `laco bench`."
        )
    try:
        return BenchReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ReportFileError(
            f"'{path}' is no report: {place}: {first['msg']}. {advice}"
        ) from error


__all__ = ["ReportFileError", "read_report"]
