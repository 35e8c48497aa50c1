"""LLaVA's JSON (one list) and JSONL (one object per line)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from laco_deploy.training.corpus.readers.base import Estimates, FileSettings, text_bytes_of
from laco_deploy.training.corpus.record import Record, SampleError, named, parse_dialogue, printable
from laco_runtimes.errors import DataError

_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"

Span = tuple[int, int]
"""First byte, and the byte behind the last."""


class LlavaReader:
    """Samples of a JSON or JSONL file. Only where each stands in the file is kept in memory.

    Args:
        settings: the file; images are paths from its `media_root`.

    Raises:
        DataError: a file that cannot be read, or that is no list of samples. A broken line of a
            JSONL file is the matter of its sample alone.
    """

    def __init__(self, settings: FileSettings) -> None:
        self._settings = settings
        self.label = settings.label
        self.ignored = 0
        try:
            data = settings.path.read_bytes()
        except OSError as error:
            raise DataError(
                f"'{settings.path}' cannot be read: {error.strerror}. Check the path."
            ) from error
        self.fingerprint = hashlib.sha256(data).hexdigest()
        spans = _lines if settings.path.suffix == ".jsonl" else _elements
        found, rows = [], []
        for span, entry in spans(data, settings.path):
            found.append(span)
            rows.append(_estimate(entry))
        self._spans = np.array(found, np.int64).reshape(-1, 2)
        self.estimates = Estimates.of(rows)

    def __len__(self) -> int:
        return len(self._spans)

    def place(self, index: int) -> str:
        """The file, and the number of the sample in it from 0."""
        return f"{self._settings.path.name}[{index}]"

    def __getitem__(self, index: int) -> Record:
        start, stop = self._spans[index].tolist()
        try:
            with self._settings.path.open("rb") as file:
                file.seek(start)
                entry = json.loads(file.read(stop - start).decode("utf-8"))
        except UnicodeDecodeError:
            raise SampleError("unreadable", "it is not UTF-8") from None
        except OSError as error:
            raise SampleError("unreadable", f"its file cannot be read: {error}") from None
        except (ValueError, RecursionError):
            raise SampleError("unreadable", "it is not JSON") from None
        return record_of(entry, self._settings, self.place(index))


def record_of(entry: Any, settings: FileSettings, place: str) -> Record:
    """A sample of LLaVA's format.

    Args:
        entry: `id`, `image` (a path or several) or `video`, `conversations`, `data_source`.
        settings: of its file.
        place: its name where it has no id.

    Raises:
        SampleError: something else.
    """
    if not isinstance(entry, Mapping):
        raise SampleError("unreadable", "it is no object with an id, an image and conversations")
    name = entry.get("id")
    with named(name):
        return _record(entry, settings, place if name is None else printable(name))


def _record(entry: Mapping[str, Any], settings: FileSettings, name: str) -> Record:
    system, turns = parse_dialogue(entry.get("conversations"))
    images = entry.get("image")
    paths = images if isinstance(images, list) else [] if images is None else [images]
    video = entry.get("video")
    if not all(
        isinstance(path, str) and path for path in [*paths, "-" if video is None else video]
    ):
        raise SampleError("unreadable", "image or video is no path")
    return Record(
        name=name,
        source=printable(entry.get("data_source") or settings.label),
        turns=turns,
        images=tuple(settings.media_root / path for path in paths),
        video=None if video is None else settings.media_root / video,
        system=system,
    )


def _estimate(entry: Any) -> tuple[int, int, bool]:
    if not isinstance(entry, Mapping):
        return 0, 0, False
    images = entry.get("image")
    count = len(images) if isinstance(images, list) else int(images is not None)
    return text_bytes_of(entry.get("conversations")), count, entry.get("video") is not None


def _lines(data: bytes, path: Path) -> Iterator[tuple[Span, Any]]:
    start = len(_BOM) if data.startswith(_BOM) else 0
    while start < len(data):
        stop = data.find(b"\n", start)
        stop = len(data) if stop < 0 else stop
        line = data[start:stop]
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            yield (start, stop), entry
        start = stop + 1


def _elements(data: bytes, path: Path) -> Iterator[tuple[Span, Any]]:
    """Elements of a list. Bytes that are not UTF-8 spoil only the sample they stand in."""
    place = len(_BOM) if data.startswith(_BOM) else 0
    text = data[place:].decode("utf-8", "surrogateescape")
    decoder, at = json.JSONDecoder(), _skip(text, 0)
    if text[at : at + 1] != "[":
        raise DataError(f"'{path}' holds no list of samples. Give a file in the format of LLaVA.")
    counted, at = 0, _skip(text, at + 1)
    is_closed = text[at : at + 1] == "]"
    while not is_closed:
        try:
            entry, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _not_json(path, text, at) from error
        start = place + len(text[counted:at].encode("utf-8", "surrogateescape"))
        place = start + len(text[at:end].encode("utf-8", "surrogateescape"))
        yield (start, place), entry
        counted, at = end, _skip(text, end)
        is_closed = text[at : at + 1] == "]"
        if not is_closed:
            if text[at : at + 1] != ",":
                raise _not_json(path, text, at)
            at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _not_json(path: Path, text: str, at: int) -> DataError:
    line = text.count("\n", 0, at) + 1
    return DataError(
        f"'{path}' is not JSON from the sample in line {line} on. Mend it, or write it as JSONL, "
        "where a broken sample does not spoil the others."
    )


__all__ = ["LlavaReader", "record_of"]
