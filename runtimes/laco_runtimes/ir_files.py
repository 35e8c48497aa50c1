"""Where an OpenVINO IR keeps its weights, checked before OpenVINO opens it.

The `.xml` names bytes of the `.bin` beside it. A stranger can seal a bundle whose hashes all match,
so every such place is held against the size of that file. No DTD, no entities.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path, PurePosixPath
from xml.parsers import expat

from laco_runtimes.errors import BundleError

MAX_IR_BYTES = 64_000_000
"""Of the `.xml`. A decoder of 24 layers has 2 MB."""
MAX_ELEMENTS = 2_000_000
MAX_DEPTH = 100
MAX_DIMS = 64

BITS = {
    **dict.fromkeys(("boolean", "i8", "u8", "f8e4m3", "f8e5m2", "f8e8m0"), 8),
    **dict.fromkeys(("f16", "bf16", "i16", "u16"), 16),
    **dict.fromkeys(("f32", "i32", "u32"), 32),
    **dict.fromkeys(("f64", "i64", "u64"), 64),
    **dict.fromkeys(("i4", "u4", "nf4", "f4e2m1"), 4),
    "u2": 2,
    "u1": 1,
}
"""Size of an element. Text has no fixed one; 3 and 6 bits are packed in ways of their own."""

PLAIN_NUMBER = re.compile(r"[0-9]{1,19}")


class _RefusedError(Exception):
    """Why a file is not accepted."""


def check_ir(path: Path, name: str, sizes: Mapping[str, int]) -> None:
    """Hold every constant of an IR against the `.bin` beside it.

    Args:
        path: the `.xml` file.
        name: its path in the bundle.
        sizes: size in bytes of every file that the manifest lists, by path in the bundle.

    Raises:
        BundleError: a constant that begins or ends outside the `.bin`, is shorter than its shape,
            or whose `.bin` the manifest does not list; a file that is no IR, or has a DTD.
    """
    weights = PurePosixPath(name).with_suffix(".bin").as_posix()
    try:
        if sizes[name] > MAX_IR_BYTES:
            raise _RefusedError(f"it is larger than {MAX_IR_BYTES} bytes")
        _Walk(weights, sizes.get(weights)).parse(path.read_bytes())
    except _RefusedError as error:
        raise BundleError(
            f"graph {name!r} is refused: {error}. Export the model again, or get the bundle "
            "from somebody you trust."
        ) from None


class _Walk:
    def __init__(self, weights: str, size: int | None) -> None:
        self._weights, self._size = weights, size
        self._open: list[tuple[str, dict[str, str]]] = []
        self._elements = 0

    def parse(self, data: bytes) -> None:
        parser = expat.ParserCreate("UTF-8")  # whatever the file says of itself
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = lambda tag: self._open.pop()
        try:
            parser.Parse(data, True)
        except expat.ExpatError as error:
            raise _RefusedError(f"it is no XML: {error}") from None

    @staticmethod
    def _declaration(version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() != "utf-8":
            raise _RefusedError(f"its encoding is {encoding[:80]!r} and not UTF-8")

    @staticmethod
    def _doctype(*_: object) -> None:
        raise _RefusedError("it has a document type, which an IR has not")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > MAX_ELEMENTS or len(self._open) > MAX_DEPTH:
            raise _RefusedError("it has more elements, or deeper ones, than any model")
        if not self._open and tag != "net":
            raise _RefusedError(f"it begins with {tag[:80]!r} and not with 'net'")
        if "__weights_path" in (tag, *attributes.values()):
            raise _RefusedError("it names a file for its weights, which are in the '.bin'")
        if tag == "data" and self._open[-1][0] == "layer":
            self._check_data(self._open[-1][1], attributes)
        self._open.append((tag, attributes))

    def _check_data(self, layer: Mapping[str, str], data: Mapping[str, str]) -> None:
        """OpenVINO reads bytes of the `.bin` for `Const` only; no other operator has both keys."""
        if layer.get("type") != "Const" and not {"offset", "size"} <= data.keys():
            return
        name = layer.get("name", "")[:80]
        offset, size = (self._number(name, key, data.get(key, "")) for key in ("offset", "size"))
        if self._size is None:
            raise _RefusedError(
                f"constant {name!r} is in {self._weights!r}, which the manifest does not list"
            )
        if offset + size > self._size:
            raise _RefusedError(
                f"constant {name!r} is in bytes {offset} to {offset + size} of {self._weights!r}, "
                f"which ends at {self._size}"
            )
        bits = BITS.get(data.get("element_type", "").lower())
        dims = [dim.strip() for dim in data.get("shape", "").split(",") if dim.strip()]
        if len(dims) > MAX_DIMS or not all(PLAIN_NUMBER.fullmatch(dim) for dim in dims):
            raise _RefusedError(f"constant {name!r} has shape {data['shape'][:80]!r}")
        if bits and -(-prod(map(int, dims)) * bits // 8) > size:
            raise _RefusedError(f"constant {name!r} has {size} bytes, too few for its shape")

    @staticmethod
    def _number(name: str, key: str, text: str) -> int:
        if not PLAIN_NUMBER.fullmatch(text):
            raise _RefusedError(f"constant {name!r} has {key} {text[:80]!r}")
        return int(text)


__all__ = ["check_ir"]
