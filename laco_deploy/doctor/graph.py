"""The graph that every engine is asked: `y = Relu(x W + b)`, as the bytes of an ONNX file.

A plain install has no `onnx`, so the protobuf wire format is written here (field numbers:
onnx.proto of ONNX 1.23). All numbers are small whole ones, so that the answer is exact in every
precision that a device may compute in.
"""

from __future__ import annotations

import numpy as np

from laco_runtimes.engines.base import Floats
from laco_runtimes.graphs import GraphSpec, TensorSpec

IR_VERSION, OPSET = 8, 17
FLOAT = 1
"""In TensorProto.DataType."""

ROWS, INNER, COLUMNS = 2, 8, 4

SPEC = GraphSpec(
    "tiny",
    (TensorSpec("x", "float32", (ROWS, INNER)),),
    (TensorSpec("y", "float32", (ROWS, COLUMNS)),),
)


def _whole_numbers(*shape: int, step: int) -> Floats:
    """Numbers from -3 to 3."""
    count = int(np.prod(shape))
    return ((np.arange(count) * step) % 7 - 3).reshape(shape).astype(np.float32)


X = _whole_numbers(ROWS, INNER, step=1)
WEIGHTS = _whole_numbers(INNER, COLUMNS, step=3)
BIAS = _whole_numbers(COLUMNS, step=2)
Y: Floats = np.maximum(X @ WEIGHTS + BIAS, 0)


def tiny_onnx() -> bytes:
    """The graph as a ModelProto."""
    graph = b"".join(
        (
            _node("MatMul", ("x", "weights"), "product"),
            _node("Add", ("product", "bias"), "sum"),
            _node("Relu", ("sum",), "y"),
            _text(2, "tiny"),
            _message(5, _tensor("weights", WEIGHTS)),
            _message(5, _tensor("bias", BIAS)),
            _message(11, _value("x", (ROWS, INNER))),
            _message(12, _value("y", (ROWS, COLUMNS))),
        )
    )
    opset = _text(1, "") + _number(2, OPSET)
    model = (_number(1, IR_VERSION), _text(2, "laco-deploy"), _message(7, graph))
    return b"".join(model) + _message(8, opset)


def _node(operator: str, inputs: tuple[str, ...], output: str) -> bytes:
    named = b"".join(_text(1, name) for name in inputs)
    return _message(1, named + _text(2, output) + _text(3, output) + _text(4, operator))


def _tensor(name: str, values: Floats) -> bytes:
    dims = b"".join(_number(1, size) for size in values.shape)
    return dims + _number(2, FLOAT) + _text(8, name) + _message(9, values.astype("<f4").tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_message(1, _number(1, size)) for size in shape)
    return _text(1, name) + _message(2, _message(1, _number(1, FLOAT) + _message(2, dims)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


__all__ = ["BIAS", "SPEC", "WEIGHTS", "X", "Y", "tiny_onnx"]
