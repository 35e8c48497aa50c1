"""What calibration images cause in the fp32 graph of an encoder: ranges of what enters its layers.

On the runtime and in the graph that the engine is compared with later, so that an image which is
also compared need not be encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnxscript import ir

from laco_export.protocols import Floats
from laco_export.qdq import products
from laco_export.session import brief_session
from laco_runtimes.engines.base import engine_errors
from laco_runtimes.engines.onnxruntime import RETRY
from laco_runtimes.errors import ExportError

FEATURES = "image_features"


@dataclass(frozen=True, slots=True)
class Range:
    """Least and largest value of each channel, [C] each."""

    low: Floats
    high: Floats


def measure_ranges(source: Path, images: Floats, path: Path, step: Callable[[], None]) -> Floats:
    """Write the range of each channel of what enters each product with a constant matrix.

    Of all images the outermost values count, not their mean: a range that cuts off a blank page
    costs more than steps that are a little wider.

    Args:
        source: the fp32 graph of the encoder.
        images: pixel values, [images, 3, S, S].
        path: of the `.npz` file, to be read by `read_ranges`.
        step: called after each image.

    Returns:
        Visual tokens of the images, [images, N', D].

    Raises:
        ExportError: the images cause something that is no number.
        EngineError: the graph does not run here.
    """
    model = ir.load(source)
    names = _watch(model.graph)
    outputs = [FEATURES, *(f"{end}.{name}" for name in names for end in ("low", "high"))]
    ends: list[Floats] = []
    features = []
    session = brief_session(ir.to_proto(model).SerializeToString(), source.parent)
    for image in images:
        with engine_errors("encoding a calibration image with ONNX Runtime", RETRY):
            first, *found = session.run(outputs, {"pixel_values": image[None]})
        features.append(first)
        ends = ends or found
        for place, value in enumerate(found):
            (np.maximum if place % 2 else np.minimum)(ends[place], value, out=ends[place])
        step()
    if not all(np.isfinite(value).all() for value in ends):
        raise ExportError(
            "the calibration images cause values in the encoder that are no numbers. "
            "Check the weights, or use --vision-precision int8w."
        )
    pairs = zip(ends[::2], ends[1::2], strict=True)
    ranges: dict[str, Any] = dict(zip(names, map(np.stack, pairs), strict=True))
    np.savez(path, **ranges)
    return np.concatenate(features)


def read_ranges(path: Path) -> dict[str, Range]:
    """Ranges by the name that the fp32 graph has for the value."""
    with np.load(path, allow_pickle=False) as file:
        return {name: Range(*file[name]) for name in file.files}


def _watch(graph: ir.Graph) -> list[str]:
    """Let the graph also say the ends of what enters its products; the names of that."""
    watched = {one.source: None for one in products(graph)}
    axes: dict[int, ir.Value] = {}
    for value in watched:
        if value.shape is None:
            raise ExportError(
                f"the graph does not say the shape of '{value.name}'. Export the model again."
            )
        rank = len(value.shape)
        if rank not in axes:
            every = ir.tensor(np.arange(rank - 1), name=f"laco.axes.{rank}")
            axes[rank] = ir.Value(
                name=every.name,
                shape=ir.Shape([rank - 1]),
                type=ir.TensorType(every.dtype),
                const_value=every,
            )
            graph.register_initializer(axes[rank])
        for end, kind in (("low", "ReduceMin"), ("high", "ReduceMax")):
            node = ir.node(kind, [value, axes[rank]], {"keepdims": 0})
            [ends] = node.outputs
            ends.name = f"{end}.{value.name}"
            ends.shape, ends.type = ir.Shape(value.shape[-1:]), value.type
            graph.append(node)
            graph.outputs.append(ends)
    return [str(value.name) for value in watched]


__all__ = ["Range", "measure_ranges", "read_ranges"]
