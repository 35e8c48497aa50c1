"""A data set's folder: either complete or not there."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laco_runtimes.errors import DataError

MARKER = "dataset.json"


def read_marker(path: Path, *, overwrite: bool = False) -> dict[str, Any] | None:
    """What `dataset.json` says, or None where there is no folder yet (or an empty one).

    A damaged data set gives an empty dict when it is to be overwritten.

    Raises:
        DataError: The path is a file or a folder with something else in it, which is never
            overwritten, or a damaged data set.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / MARKER).is_file():
        raise DataError(
            f"'{path}' exists and is not a data set of laco-deploy. "
            "Choose a folder that does not exist yet."
        )
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        complete = all(
            (path / f"{split}.json").is_file() and (path / "images" / split).is_dir()
            for split in marker["group_counts"]
        )
    except (ValueError, KeyError, TypeError):
        complete = False
    if complete:
        return dict(marker)
    if overwrite:
        return {}
    raise DataError(f"The data set in '{path}' is damaged. Overwrite it or choose another folder.")


def write_json(path: Path, value: object) -> None:
    """Write JSON and wait until it is on the disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        if isinstance(value, list):  # one record per line: quick to write, easy to grep
            file.write(
                "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]\n"
            )
        else:
            file.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place at the end.

    If anything goes wrong it disappears, and an older data set in `out` stays as it was.
    """
    out = out.resolve()
    unique = secrets.token_hex(4)  # not the process id: containers that share a disk share ids
    temporary = out.with_name(f".{out.name}.{unique}.tmp")
    retired = out.with_name(f".{out.name}.{unique}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _flush_disk()
        if out.exists():
            out.rename(retired)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if retired.exists() and not out.exists():
            retired.rename(out)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _flush_disk() -> None:
    """One flush for all pictures: one fsync each would take longer than making them."""
    if hasattr(os, "sync"):  # not on Windows
        os.sync()
