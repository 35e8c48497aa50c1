"""Files of a run that grow line by line (JSON), and can be cut back to an earlier step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def append_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Add entries at the end, each as a line."""
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_lines(path: Path) -> list[Entry]:
    """All entries; a last line that a crash has torn is left out, and no file is no entry."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def keep_until(path: Path, step: int, *, write: bool = True) -> list[Entry]:
    """Cut away what came after `step`, atomically; return what is left.

    Args:
        path: the file; each entry holds its `step`.
        step: the last to keep.
        write: False only reads, for processes that share the file with a writer.
    """
    kept = [entry for entry in read_lines(path) if entry["step"] <= step]
    if write and path.is_file():
        replace_text(path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))
    return kept


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


__all__ = ["append_lines", "keep_until", "read_lines", "replace_text"]
