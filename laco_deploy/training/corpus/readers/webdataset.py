"""Tar shards as webdataset has them: the members of a sample stand together and share a name.

`0001.json`, `0001.jpg`: the name up to its first dot is the sample, the last ending says what it
is. Nothing is extracted, unpickled or piped: members are read where they stand in the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np

from laco_deploy.model.visual_inputs import IMAGE_MARK
from laco_deploy.training.corpus.readers.base import Estimates, FileSettings, text_bytes_of
from laco_deploy.training.corpus.record import (
    Record,
    SampleError,
    Turn,
    named,
    natural_key,
    parse_dialogue,
    printable,
)
from laco_runtimes.errors import DataError

MAX_SAMPLE_BYTES = 1_000_000_000
"""Of all members of a sample; a larger one is refused before it is read."""

_END_BYTES = 1_000_000


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SampleError("unreadable", "its text is not UTF-8") from None


def _json(data: bytes) -> Any:
    text = _text(data)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise SampleError("unreadable", "its json is not JSON") from None


def _image(data: bytes) -> bytes:
    return data  # decoded where it is needed


DECODERS: Mapping[str, Callable[[bytes], Any]] = MappingProxyType(
    {"json": _json, "txt": _text, "jpg": _image, "jpeg": _image, "png": _image, "webp": _image}
)
"""By the last ending. Members of any other kind are ignored."""


@dataclass(frozen=True, slots=True)
class _Member:
    key: str
    """Folder, and name up to its first dot."""
    suffix: str
    """Name from there on, lower case."""
    start: int
    """First byte of its contents."""
    size: int
    info: tarfile.TarInfo
    is_hidden: bool

    @property
    def decoder(self) -> Callable[[bytes], Any] | None:
        """None for a member that is ignored, a hidden one among them."""
        return None if self.is_hidden else DECODERS.get(self.suffix.rpartition(".")[2])


class WebdatasetReader:
    """Samples of a shard. Only where each begins and ends is kept in memory.

    The dialogue is that of the json (LLaVA's format, its `image` is not looked at), else the txt is
    the caption of the images. Images are in the natural order of their endings (`0.jpg`, `1.jpg`).

    Args:
        settings: the file.

    Raises:
        DataError: no tar file, or a compressed one. A shard that is damaged further on has its
            samples up to there, and one broken sample for the rest.
    """

    def __init__(self, settings: FileSettings) -> None:
        self._settings = settings
        self.label = settings.label
        self.ignored = 0
        self._damage = ""
        digest = hashlib.sha256()
        spans: list[tuple[int, int]] = []
        rows: list[tuple[int, int, bool]] = []
        try:
            with settings.path.open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                last_key = None
                for member, stop in self._members(file, size):
                    digest.update(f"{member.info.name}\0{member.size}\0".encode("utf-8", "replace"))
                    if member.decoder is None:
                        self.ignored += 1
                        continue
                    if member.key != last_key:
                        spans.append((member.info.offset, stop))
                        rows.append((0, 0, False))
                        last_key = member.key
                    spans[-1] = (spans[-1][0], stop)
                    rows[-1] = _add(rows[-1], self._estimate(member, file, digest))
        except (OSError, tarfile.TarError) as error:
            raise DataError(
                f"'{settings.path}' cannot be read as a tar shard: {error}. "
                "Give an uncompressed tar file."
            ) from error
        if self._damage:
            spans.append((size, size))
            rows.append((0, 0, False))
        self._spans = np.array(spans, np.int64).reshape(-1, 2)
        self.estimates = Estimates.of(rows)
        self.fingerprint = digest.hexdigest()

    def _members(self, file: io.BufferedReader, size: int) -> Iterator[tuple[_Member, int]]:
        """Regular members with the byte behind each; notes where the shard is damaged."""
        with tarfile.open(fileobj=file, mode="r:") as tar:
            place = 0
            try:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]
                    place = -(-(info.offset_data + info.size) // tarfile.BLOCKSIZE)
                    place *= tarfile.BLOCKSIZE
                    if info.isreg() and not info.issparse():
                        yield _member(info), place
                    elif not info.isdir():
                        self.ignored += 1
                    if tar.offset <= info.offset:
                        raise tarfile.ReadError("a member that ends before it begins")
            except tarfile.TarError as error:
                if place == 0:
                    raise
                self._damage = str(error)
                if place > size:
                    self._damage = ""  # its last sample is cut short, and says so itself
                return
            # A damaged header looks like the end to tarfile; the true end is of zeros.
            file.seek(place)
            if file.read(_END_BYTES).strip(b"\0"):
                self._damage = f"no member begins at byte {place}"

    def _estimate(
        self, member: _Member, file: io.BufferedReader, digest: Any
    ) -> tuple[int, int, bool]:
        decoder = member.decoder
        if decoder is _image:
            return 0, 1, False
        if member.size > MAX_SAMPLE_BYTES:
            return 0, 0, False
        file.seek(member.start)
        data = file.read(member.size)
        digest.update(data)
        if decoder is _text:
            return len(data), 0, False
        try:
            entry = _json(data)
        except SampleError:
            return 0, 0, False
        known = entry.get("conversations") if isinstance(entry, Mapping) else None
        return text_bytes_of(known), 0, False

    def __len__(self) -> int:
        return len(self._spans)

    def place(self, index: int) -> str:
        """The shard, and the number of the sample in it from 0."""
        return f"{self._settings.path.name}[{index}]"

    def __getitem__(self, index: int) -> Record:
        start, stop = self._spans[index].tolist()
        if start == stop:
            raise SampleError(
                "unreadable", f"the shard is damaged ({self._damage}): what stands behind is lost"
            )
        if stop - start > MAX_SAMPLE_BYTES:
            raise SampleError("unreadable", f"its members have {stop - start} bytes")
        try:
            with self._settings.path.open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
        except OSError as error:
            raise SampleError("unreadable", f"its shard cannot be read: {error}") from None
        members = _split(data)
        if not members:
            raise SampleError("unreadable", "its shard has changed since it was indexed")
        return self._record(members)

    def _record(self, members: list[tuple[_Member, Any]]) -> Record:
        key = members[0][0].key
        images = sorted(
            (natural_key(member.suffix), value)
            for member, value in members
            if member.decoder is _image
        )
        found = {member.decoder: value for member, value in members}
        entry = found.get(_json)
        if entry is not None and not isinstance(entry, Mapping):
            raise SampleError("unreadable", "its json is no object with conversations")
        known = entry or {}
        name = printable(known.get("id", key))
        with named(name):
            system, turns = self._dialogue(known, found.get(_text), len(images))
        return Record(
            name=name,
            source=printable(known.get("data_source") or self._settings.label),
            turns=turns,
            images=tuple(value for _, value in images),
            system=system,
        )

    def _dialogue(
        self, known: Mapping[str, Any], caption: str | None, images: int
    ) -> tuple[str | None, tuple[Turn, ...]]:
        if "conversations" in known:
            return parse_dialogue(known["conversations"])
        if caption is None:
            raise SampleError("dialogue", "it has neither a json with conversations nor a txt")
        if not caption.strip():
            raise SampleError("empty_answer", "its caption is empty")
        return None, (Turn(IMAGE_MARK * max(images, 1), caption.strip()),)


def _split(data: bytes) -> list[tuple[_Member, Any]]:
    """The members of a sample, decoded."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                member = _member(info)
                if not info.isreg() or info.issparse() or member.decoder is None:
                    continue
                contents = data[member.start : member.start + member.size]
                if len(contents) < member.size:
                    raise SampleError("unreadable", f"its member {member.suffix} is cut short")
                found.append((member, member.decoder(contents)))
    except tarfile.TarError as error:
        raise SampleError("unreadable", f"its members cannot be read: {error}") from None
    return found


def _member(info: tarfile.TarInfo) -> _Member:
    path = PurePosixPath(info.name)
    stem, _, suffix = path.name.partition(".")
    key, is_hidden = str(path.parent / stem), path.name.startswith(".")
    return _Member(key, suffix.lower(), info.offset_data, info.size, info, is_hidden)


def _add(row: tuple[int, int, bool], more: tuple[int, int, bool]) -> tuple[int, int, bool]:
    return row[0] + more[0], row[1] + more[1], False


__all__ = ["DECODERS", "WebdatasetReader"]
