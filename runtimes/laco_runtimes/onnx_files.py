"""Where an ONNX file keeps its weights, checked before an engine opens it.

A stranger can seal a bundle whose hashes all match. What a graph says about files beside it is
therefore held against the manifest here. The runtime has no `onnx`: this reads protobuf's wire
format itself, of every message that can hold a tensor (numbers: onnx.proto of ONNX 1.23), and
refuses what it does not know, so that no reader behind it sees more than was checked.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from laco_runtimes.errors import BundleError

MAX_FIELDS = 2_000_000
"""Fields of one file. A model of 500 layers has fewer than a million."""
MAX_DEPTH = 100
"""Messages inside one another; protobuf's own limit."""
MAX_DIMS = 64

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
    15: 128,
}
"""Size of an element by TensorProto.DataType; strings (8) cannot be kept outside."""

EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
PLAIN_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
PLAIN_NUMBER = re.compile(r"[0-9]{1,19}")

Data = mmap.mmap | bytes


@dataclass(frozen=True, slots=True)
class Message:
    """Fields of one kind of message, by number."""

    known: frozenset[int]
    parts: dict[int, str] = field(default_factory=dict)
    """Those that are messages to be looked into."""
    once: frozenset[int] = frozenset()
    """Those that must not be repeated: a parser would merge them or take the last."""


MESSAGES = {
    "ModelProto": Message(
        frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 25, 26}),
        {7: "GraphProto", 25: "FunctionProto"},
        frozenset({7}),
    ),
    "GraphProto": Message(
        frozenset({1, 2, 5, 10, 11, 12, 13, 14, 15, 16}),
        {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    ),
    "NodeProto": Message(
        frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), {5: "AttributeProto"}, frozenset({4})
    ),
    "AttributeProto": Message(
        frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 20, 21, 22, 23}),
        {
            5: "TensorProto",
            6: "GraphProto",
            10: "TensorProto",
            11: "GraphProto",
            22: "SparseTensorProto",
            23: "SparseTensorProto",
        },
        frozenset({5, 6, 22}),
    ),
    "SparseTensorProto": Message(
        frozenset({1, 2, 3}), {1: "TensorProto", 2: "TensorProto"}, frozenset({1, 2})
    ),
    "FunctionProto": Message(
        frozenset({1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}), {7: "NodeProto", 11: "AttributeProto"}
    ),
    "TensorProto": Message(
        frozenset({1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16}), {}, frozenset({2, 8, 9, 14})
    ),
    "StringStringEntryProto": Message(frozenset({1, 2}), {}, frozenset({1, 2})),
}
"""Training graphs (ModelProto 20) and segments (TensorProto 3) are left out: refused."""


class _Field(NamedTuple):
    number: int
    wire: int
    value: int
    """Of a number; of bytes, where they begin."""
    end: int


class _RefusedError(Exception):
    """Why a file is not accepted."""


def check_onnx(path: Path, name: str, sizes: Mapping[str, int]) -> None:
    """Hold every tensor of an ONNX file against the files of its bundle.

    Args:
        path: the file.
        name: its path in the bundle.
        sizes: size in bytes of every file that the manifest lists, by path in the bundle.

    Raises:
        BundleError: external data that leaves the bundle, is not listed, begins or ends outside its
            file, or is not as long as the tensor; a file that is no ONNX, or has parts that are not
            known here.
    """
    try:
        if not sizes[name]:  # mmap takes none of no bytes
            raise _RefusedError("it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data, PurePosixPath(name).parent, sizes).model()
    except _RefusedError as error:
        raise BundleError(
            f"graph {name!r} is refused: {error}. Export the model again, or get the bundle "
            "from somebody you trust."
        ) from None


class _Walk:
    def __init__(self, data: Data, folder: PurePosixPath, sizes: Mapping[str, int]) -> None:
        self._data, self._folder, self._sizes = data, folder, sizes
        self._left = MAX_FIELDS

    def model(self) -> None:
        """Look into every message below the model, the deepest not by recursion."""
        stack = [("ModelProto", 0, len(self._data), 0)]
        graphs = 0
        while stack:
            kind, start, end, depth = stack.pop()
            if depth > MAX_DEPTH:
                raise _RefusedError(f"it nests more than {MAX_DEPTH} messages")
            graphs += kind == "GraphProto"
            fields = self._fields(kind, start, end)
            if kind == "TensorProto":
                self._tensor(fields)
                continue
            for one in fields:
                if part := MESSAGES[kind].parts.get(one.number):
                    stack.append((part, one.value, one.end, depth + 1))
                elif kind == "NodeProto" and one.number == 4:
                    self._operator(one)
        if not graphs:
            raise _RefusedError("it holds no graph")

    def _operator(self, one: _Field) -> None:
        if self._text(one) == "EPContext":
            raise _RefusedError("it holds an EPContext node, compiled code of one device")

    def _tensor(self, fields: Iterator[_Field]) -> None:
        dims: list[int] = []
        kind = location = 0
        name = ""
        entries: dict[str, str] = {}
        for one in fields:
            if one.number == 1:
                dims += self._integers(one)
            elif one.number == 2:
                kind = self._integer(one)
            elif one.number == 8:
                name = self._text(one)[:80]
            elif one.number == 13:
                self._entry(one, entries, name)
            elif one.number == 14:
                location = self._integer(one)
        if location not in (0, 1) or (location == 1) != bool(entries):
            raise _RefusedError(f"tensor {name!r} does not say clearly where its data is")
        if entries:
            self._check_entries(name, entries, dims, kind)

    def _entry(self, one: _Field, entries: dict[str, str], tensor: str) -> None:
        pair = {1: "", 2: ""}
        for part in self._fields("StringStringEntryProto", one.value, one.end):
            pair[part.number] = self._text(part)
        key, value = pair.values()
        if key not in EXTERNAL_KEYS or key in entries:
            raise _RefusedError(f"tensor {tensor!r} has external data with key {key[:80]!r}")
        entries[key] = value

    def _check_entries(
        self, name: str, entries: Mapping[str, str], dims: list[int], kind: int
    ) -> None:
        place = entries.get("location", "")
        if not PLAIN_PATH.fullmatch(place):
            raise _RefusedError(
                f"tensor {name!r} has its data in {place[:80]!r}, which is no plain file name"
            )
        file = (self._folder / place).as_posix()
        if file not in self._sizes:
            raise _RefusedError(
                f"tensor {name!r} has its data in {file[:80]!r}, which the manifest does not list"
            )
        if kind not in BITS or len(dims) > MAX_DIMS:
            raise _RefusedError(
                f"tensor {name!r} has external data of type {kind} and {len(dims)} dimensions"
            )
        size = -(-prod(dims) * BITS[kind] // 8)
        offset = self._number(name, "offset", entries.get("offset", "0"))
        length = self._number(name, "length", entries["length"]) if "length" in entries else size
        if length != size:
            raise _RefusedError(
                f"tensor {name!r} takes {size} bytes and says that its data has length {length}"
            )
        if offset + length > self._sizes[file]:
            raise _RefusedError(
                f"tensor {name!r} has its data in bytes {offset} to {offset + length} of {file!r}, "
                f"which ends at {self._sizes[file]}"
            )

    @staticmethod
    def _number(name: str, key: str, text: str) -> int:
        if not PLAIN_NUMBER.fullmatch(text):
            raise _RefusedError(f"tensor {name!r} has external data with {key} {text[:80]!r}")
        return int(text)

    @staticmethod
    def _integer(one: _Field) -> int:
        if one.wire != VARINT:
            raise _RefusedError(f"field {one.number} is no number")
        return one.value

    def _integers(self, one: _Field) -> Iterator[int]:
        """Dimensions, one by one or packed."""
        values = self._packed(one) if one.wire == BYTES else iter([self._integer(one)])
        for value in values:
            if value >= 2**63:
                raise _RefusedError("a tensor has a negative dimension")
            yield value

    def _packed(self, one: _Field) -> Iterator[int]:
        at = one.value
        while at < one.end:
            self._count()
            value, at = self._varint(at, one.end)
            yield value

    def _text(self, one: _Field) -> str:
        if one.wire != BYTES:
            raise _RefusedError(f"field {one.number} is no text")
        try:
            return self._data[one.value : one.end].decode()
        except UnicodeDecodeError:
            raise _RefusedError("a name in it is no text") from None

    def _fields(self, kind: str, start: int, end: int) -> Iterator[_Field]:
        """The fields of one message, in order.

        Raises:
            _RefusedError: bytes that are no message, an unknown field, or one that is repeated and
                must not be.
        """
        message, data = MESSAGES[kind], self._data
        seen: set[int] = set()
        at = start
        while at < end:
            self._count()
            tag = data[at]
            if tag < 0x80:  # nearly always
                at += 1
            else:
                tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if number not in message.known:
                raise _RefusedError(f"field {number} of {kind} is not known, or not allowed")
            if number in message.once:
                if number in seen:
                    raise _RefusedError(f"field {number} of {kind} stands there twice")
                seen.add(number)
            if wire == BYTES:
                length, value = self._varint(at, end)
                at = value + length
            elif wire == VARINT:
                value, at = self._varint(at, end)
            elif wire in (FIXED32, FIXED64):
                value = at
                at += 4 if wire == FIXED32 else 8
            else:
                raise _RefusedError(f"field {number} of {kind} has no known form")
            if at > end:
                raise _RefusedError(f"field {number} of {kind} is cut off")
            if number in message.parts and wire != BYTES:
                raise _RefusedError(f"field {number} of {kind} is no message")
            yield _Field(number, wire, value, at)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of 7 bits per byte, and where it ends."""
        if at < end and (value := self._data[at]) < 0x80:
            return value, at + 1
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise _RefusedError("a number in it is cut off")
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
        raise _RefusedError("a number in it does not end")

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _RefusedError(f"it has more than {MAX_FIELDS} fields")


__all__ = ["BITS", "MESSAGES", "check_onnx"]
