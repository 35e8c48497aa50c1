"""Parquet as LLaVA-OneVision-Data has it: id, image, conversations, data_source."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from laco_deploy.model.visual_inputs import IMAGE_MARK
from laco_deploy.training.corpus.readers.base import Estimates, FileSettings, text_bytes_of
from laco_deploy.training.corpus.record import Record, SampleError, named, parse_dialogue
from laco_runtimes.errors import DataError

COLUMNS = ("id", "image", "conversations", "data_source")

CACHE_BYTES = 256_000_000
"""Row groups are read whole and the last ones kept. Samples come in any order, so files with small
row groups (a hundred rows, as `datasets` writes images) are read fastest."""


class ParquetReader:
    """Samples of a parquet file.

    `image` is null, the contents of a file, `{"bytes", "path"}` or a list of those; a path without
    bytes starts from `media_root`.

    Args:
        settings: the file.

    Raises:
        DataError: no parquet file, or one without conversations.
    """

    def __init__(self, settings: FileSettings) -> None:
        self._settings = settings
        self._owner = -1
        self.label = settings.label
        self.ignored = 0
        self._open()
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        digest = hashlib.sha256(str(settings.path.stat().st_size).encode())
        rows: list[tuple[int, int, bool]] = []
        for group, size in enumerate(sizes):
            rows += self._scan(group, size, digest)
        self.estimates = Estimates.of(rows)
        self.fingerprint = digest.hexdigest()

    def _open(self) -> None:
        """Open the file in this process: one that a parent opened is not used in its children."""
        import pyarrow
        import pyarrow.parquet

        if self._owner == os.getpid():
            return
        path = self._settings.path
        try:
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(
                f"'{path}' cannot be read as parquet: {error}. Copy or write it again."
            ) from error
        known = self._file.schema_arrow.names
        if "conversations" not in known:
            raise DataError(
                f"'{path}' has no column conversations but {', '.join(known)}. "
                "Give a file in the format of LLaVA-OneVision-Data."
            )
        self._columns = [name for name in COLUMNS if name in known]
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        kept = {**self.__dict__, "_owner": -1}
        return {name: kept[name] for name in kept if name not in ("_file", "_groups", "_columns")}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, index: int) -> str:
        """The file, and the row from 0."""
        return f"{self._settings.path.name}[{index}]"

    def __getitem__(self, index: int) -> Record:
        import pyarrow

        self._open()
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            row = self._group(group).slice(index - int(self._starts[group]), 1).to_pylist()[0]
        except UnicodeDecodeError:
            raise SampleError("unreadable", "it is not UTF-8") from None
        except (OSError, pyarrow.ArrowException) as error:
            raise SampleError("unreadable", f"its row group cannot be read: {error}") from None
        name = row.get("id")
        with named(name):
            return self._record(row, self.place(index) if name is None else str(name))

    def _record(self, row: Mapping[str, Any], name: str) -> Record:
        system, turns = parse_dialogue(row["conversations"])
        given = row.get("image")
        images = given if isinstance(given, list) else [] if given is None else [given]
        return Record(
            name=name,
            source=str(row.get("data_source") or self._settings.label),
            turns=turns,
            images=tuple(self._image(image) for image in images),
            system=system,
        )

    def _image(self, image: Any) -> Any:
        if isinstance(image, Mapping):
            contents, path = image.get("bytes"), image.get("path")
            image = path if contents is None else contents
        if isinstance(image, str) and image:
            return self._settings.media_root / image
        if not isinstance(image, bytes):
            raise SampleError("missing_image", "an image has neither bytes nor a path")
        return image

    def _group(self, number: int) -> Any:
        """A row group, from the cache where it is there."""
        if number in self._groups:
            self._groups.move_to_end(number)
        else:
            table = self._file.read_row_group(number, columns=self._columns, use_threads=False)
            self._groups[number] = table
            while len(self._groups) > 1 and self._cached_bytes() > CACHE_BYTES:
                self._groups.popitem(last=False)
        return self._groups[number]

    def _cached_bytes(self) -> int:
        return sum(table.nbytes for table in self._groups.values())

    def _scan(self, group: int, size: int, digest: Any) -> list[tuple[int, int, bool]]:
        """Estimates of a row group. One that cannot be read is the matter of its samples."""
        import pyarrow

        columns = [name for name in self._columns if name != "image"]
        try:
            rows = self._file.read_row_group(group, columns, use_threads=False).to_pylist()
        except (OSError, UnicodeDecodeError, pyarrow.ArrowException):
            digest.update(f"broken {group}".encode())
            return [(0, 0, False)] * size
        digest.update(json.dumps(rows, default=str).encode("utf-8", "surrogatepass"))
        return [
            (text_bytes_of(row["conversations"]), _marks(row["conversations"]), False)
            for row in rows
        ]


def _marks(conversations: Any) -> int:
    """Images of a row as its text has them: whether an image is null is only seen by reading it."""
    return str(conversations).count(IMAGE_MARK)


__all__ = ["COLUMNS", "ParquetReader"]
