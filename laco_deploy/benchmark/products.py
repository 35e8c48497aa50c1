"""A dense layer made in memory for the engine of a bundle: how fast can it multiply matrices?

y = x W with a constant W, as in every layer of a model, so that an engine may lay W out as it
likes. A new engine is one function and one line in `PRODUCTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from laco_runtimes.engines.base import Floats
from laco_runtimes.engines.onnxruntime import PROVIDERS
from laco_runtimes.engines.openvino import COMPUTE, import_openvino, openvino_core

ROWS, INNER, COLUMNS = 1024, 1024, 4096
"""x is [ROWS, INNER], W [INNER, COLUMNS]: the size of a feed-forward layer over an image."""
OPERATIONS = 2 * ROWS * INNER * COLUMNS

Run = Callable[[], object]
"""One product."""


def _inputs() -> tuple[Floats, Floats]:
    random = np.random.default_rng(0)
    shapes = (ROWS, INNER), (INNER, COLUMNS)
    x, weight = (random.standard_normal(shape, np.float32) for shape in shapes)
    return x, weight


def onnxruntime_products(device: str, threads: int | None) -> Mapping[str, Run]:
    """In fp32; on a GPU with the copies to it and back, which are a few in a hundred of it."""
    import onnxruntime

    x, weight = _inputs()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        onnx_product(weight), options, providers=[PROVIDERS[device]]
    )
    return {"fp32": lambda: session.run(["y"], {"x": x})}


def openvino_products(device: str, threads: int | None) -> Mapping[str, Run]:
    """In each precision that the device says it can compute in."""
    openvino = import_openvino()
    from openvino import opset13

    core, (x, weight) = openvino_core(), _inputs()
    capabilities = core.get_property(device, "OPTIMIZATION_CAPABILITIES")

    def compiled(hint: str) -> Run:
        entry = opset13.parameter([ROWS, INNER], np.float32)
        model = openvino.Model([opset13.matmul(entry, weight, False, False)], [entry])
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        request = core.compile_model(model, device, config).create_infer_request()
        request.set_input_tensor(openvino.Tensor(x))  # a copy: it outlives `x`

        def run() -> None:
            request.start_async()
            request.wait()

        return run

    return {
        precision: compiled(hint)
        for precision, (hint, capability) in COMPUTE.items()
        if capability in capabilities
    }


PRODUCTS: Mapping[str, Callable[[str, int | None], Mapping[str, Run]]] = {
    "onnxruntime": onnxruntime_products,
    "openvino": openvino_products,
}
"""By the name of the target: for a device in the engine's own words and CPU threads, one dense
layer for each precision to compute in."""


def onnx_product(weight: Floats) -> bytes:
    """An ONNX file of `y = MatMul(x, W)`, [ROWS, INNER] x W, in protobuf's wire format.

    There is no `onnx` where models only run (onnx.proto, `ModelProto`).
    """
    inner, columns = weight.shape
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(4, "MatMul")
    dims = _number(1, inner) + _number(1, columns)
    raw = np.ascontiguousarray(weight, "<f4").tobytes()
    initializer = dims + _number(2, 1) + _text(8, "w") + _field(9, raw)
    graph = (
        _field(1, node)
        + _text(2, "product")
        + _field(5, initializer)
        + _field(11, _value("x", ROWS, inner))
        + _field(12, _value("y", ROWS, columns))
    )
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 17))


def _value(name: str, *sizes: int) -> bytes:
    """`ValueInfoProto` of a float32 tensor."""
    shape = b"".join(_field(1, _number(1, size)) for size in sizes)
    return _text(1, name) + _field(2, _field(1, _number(1, 1) + _field(2, shape)))


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits per byte, the lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


__all__ = ["OPERATIONS", "PRODUCTS", "Run", "onnx_product"]
