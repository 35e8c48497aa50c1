"""A decoder's ONNX file that also tells how many of the last positions it gives logits of.

The file keeps the last position by `Slice`s from -1. In memory they get a start of their own, an
initialiser that is listed as an input too, which a caller may therefore replace (ONNX's IR.md,
"Graphs"); the file stays as it is. There is no `onnx` here: protobuf's wire format is read as far
as needed, and changed where no length changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_BYTES = 64 * 2**20
"""A file this long holds its weights inside; it is left to the engine to read."""

GRAPH, NODE, INITIALIZER, INPUT = 7, 1, 5, 11
"""`ModelProto.graph`; `GraphProto.node`, `.initializer` and `.input`."""
NODE_INPUT, NODE_OUTPUT, NODE_TYPE = 1, 2, 4
DIMS, DATA_TYPE, INT64_DATA, TENSOR_NAME, RAW_DATA = 1, 2, 7, 8, 9
INT64 = 7
"""`TensorProto.DataType`."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

LAST = (-1).to_bytes(8, "little", signed=True)
"""The one element of such a start."""
SECOND = (1).to_bytes(8, "little", signed=True)
"""The axis of positions."""

NAME = b"first_logit"
"""Of the new input, cut or filled to the length of the name it takes the place of."""


@dataclass(frozen=True, slots=True)
class OpenDecoder:
    """A model to load instead of a file."""

    model: bytes
    first_logit: str
    """Name of its further input: the first position with logits, counted from the end as in
    Python, [1] of int64; -1 where it is not given."""


class _Part(NamedTuple):
    """Bytes of a field: where they begin and end."""

    start: int
    end: int


@dataclass(slots=True)
class _Found:
    model: bytes
    ones: dict[bytes, bytes] = field(default_factory=dict)
    """Initialisers of one element, as eight bytes."""
    slices: list[list[_Part]] = field(default_factory=list)
    """Names of the inputs of every Slice."""
    names: set[bytes] = field(default_factory=set)
    """Of everything that a node reads or gives."""

    def text(self, part: _Part) -> bytes:
        return self.model[part.start : part.end]


def keep_positions(model: bytes) -> OpenDecoder | None:
    """Give the slices that keep the last position a start that may be replaced.

    Args:
        model: of a file that `laco_runtimes.onnx_files.check_onnx` has accepted.

    Returns:
        None where the graph has no such slices.
    """
    found = _Found(model)
    try:
        for number, graph in _fields(model, _Part(0, len(model))):
            if number == GRAPH and isinstance(graph, _Part):
                _read_graph(graph, found)
    except IndexError:
        return None  # no ONNX file, which the engine says best
    starts = [
        begin
        for _, begin, _, axis, *_ in (one for one in found.slices if len(one) > 3)
        if found.ones.get(found.text(begin)) == LAST and found.ones.get(found.text(axis)) == SECOND
    ]
    lengths = {start.end - start.start for start in starts}
    if len(lengths) != 1:
        return None
    [length] = lengths
    name = NAME[:length].ljust(length, b"_")
    if name in found.names:
        return None
    changed = bytearray(model)
    for start in starts:
        changed[start.start : start.end] = name
    # A message that stands there a second time is merged with the first: its parts are added.
    changed += _field(GRAPH, _field(INITIALIZER, _start(name)) + _field(INPUT, _value_info(name)))
    return OpenDecoder(bytes(changed), name.decode())


def _read_graph(graph: _Part, found: _Found) -> None:
    for number, part in _fields(found.model, graph):
        if number == NODE and isinstance(part, _Part):
            inputs, kind = [], b""
            for which, text in _fields(found.model, part):
                if isinstance(text, _Part) and which in (NODE_INPUT, NODE_OUTPUT):
                    found.names.add(found.text(text))
                    inputs += [text] if which == NODE_INPUT else []
                elif isinstance(text, _Part) and which == NODE_TYPE:
                    kind = found.text(text)
            if kind == b"Slice":
                found.slices.append(inputs)
        elif number == INITIALIZER and isinstance(part, _Part):
            _read_tensor(part, found)


def _read_tensor(tensor: _Part, found: _Found) -> None:
    name, content = b"", b""
    for number, value in _fields(found.model, tensor):
        if not isinstance(value, _Part):
            content = value.to_bytes(8, "little") if number == INT64_DATA else content
        elif number == TENSOR_NAME:
            name = found.text(value)
        elif number == RAW_DATA and value.end - value.start == len(LAST):
            content = found.text(value)
        elif number == INT64_DATA:  # packed
            one, at = _varint(found.model, value.start, value.end)
            content = one.to_bytes(8, "little") if at == value.end else b""
    if content:
        found.ones[name] = content


def _start(name: bytes) -> bytes:
    """`TensorProto` of [-1]."""
    kind = _number(DIMS, 1) + _number(DATA_TYPE, INT64)
    return kind + _field(TENSOR_NAME, name) + _field(RAW_DATA, LAST)


def _value_info(name: bytes) -> bytes:
    """`ValueInfoProto` of an int64 tensor of shape [1]."""
    shape = _field(1, _number(1, 1))
    tensor = _number(1, INT64) + _field(2, shape)
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | BYTES) + _encoded(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _encoded(number << 3 | VARINT) + _encoded(value)


def _encoded(value: int) -> bytes:
    """Seven bits per byte, the lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _fields(model: bytes, message: _Part) -> Iterator[tuple[int, int | _Part]]:
    """Number and content of each field of a message.

    Raises:
        IndexError: it is cut off.
    """
    at = message.start
    while at < message.end:
        tag, at = _varint(model, at, message.end)
        if tag & 7 == VARINT:
            value, at = _varint(model, at, message.end)
            yield tag >> 3, value
            continue
        if tag & 7 == BYTES:
            length, at = _varint(model, at, message.end)
        else:
            length = 4 if tag & 7 == FIXED32 else 8
        if at + length > message.end:
            raise IndexError("a field is cut off")
        yield tag >> 3, _Part(at, at + length)
        at += length


def _varint(model: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end:
            raise IndexError("a number is cut off")
        byte = model[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7


__all__ = ["MAX_BYTES", "OpenDecoder", "keep_positions"]
