"""Weights and activations of an encoder's dense layers in 8 bits, from ranges of their channels.

What smoothing needs, the largest value of each channel, and what rounding needs, the range behind
smoothing, both follow from the least and the largest value of each channel before it. So images are
encoded once (`laco_export.ranges`), where a chain of separate steps would encode them after each.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from laco_export.ranges import Range, read_ranges
from laco_export.targets.base import CompileRequest
from laco_export.targets.openvino_weights import dense_layers, outputs_first
from laco_runtimes.errors import ExportError

if TYPE_CHECKING:
    from openvino import Model, Node, Output
    from openvino.op import Constant

Floats = NDArray[np.float32]

SMOOTHING = 0.5
"""How much of the range of activations goes over to the weights: SmoothQuant's own default (Xiao et
al. 2023, section 4). With 0.95, weights of 7 bits have too little left: the least cosine of
AIMv2-Large with random weights was 0.977, with 0.5 it is 0.996."""

WEAKEST = 0.1
"""Share of the channels that are not made larger than the strongest of them would be."""

STEPS = 255
"""Between the ends of a range of activations: 8 bits without a sign."""

LARGEST = 64
"""Code of a weight. A CPU without VNNI adds products in pairs of 16 bits: 2 x 255 x 64 fits."""

LEAST = 1e-5
"""A channel that was never larger counts as this large."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Dense layers that read the same activations, [..., C]: query, key and value, for one."""

    source: Output
    layers: tuple[tuple[Node, Constant], ...]
    """Each with its weight."""


def int8_activations(model: Model, request: CompileRequest) -> Model:
    """Round the weights of every dense layer and what goes into it, by what images cause.

    Raises:
        ExportError: there are no calibration images, or a layer is not one of the fp32 graph.
    """
    if request.calibration is None:
        raise ExportError(
            "int8 needs calibration images, and none were given. "
            "Give --calibration, or use --vision-precision int8w."
        )
    ranges = read_ranges(request.calibration)
    for group in _groups(model):
        _round(group, _range(group.source, ranges))
    outputs_first(model)  # now, when weights have a quarter of the bytes
    return model


def _groups(model: Model) -> list[_Group]:
    """All but the layers that read pixels, in the order of the graph."""
    kept = _readers_of_pixels(model)
    found: dict[tuple[str, int], list[tuple[Node, Constant]]] = {}
    for layer, weight in dense_layers(model):
        plain = not layer.get_attributes()["transpose_a"] and len(weight.shape) == 2
        if plain and layer.get_friendly_name() not in kept:
            source = layer.input_value(0)
            key = source.get_node().get_friendly_name(), source.get_index()
            found.setdefault(key, []).append((layer, weight))
    return [_Group(layers[0][0].input_value(0), tuple(layers)) for layers in found.values()]


def _readers_of_pixels(model: Model) -> frozenset[str]:
    """Names of the layers that embed patches, which stay as they are, and of what makes a smaller
    image before them.

    They are less than a hundredth of the work, and rounding pixels is what all patches have in
    common: the least cosine of a plain grey image in SigLIP with random weights was 0.65.
    """
    names, pixels = set(), list(model.inputs)
    while pixels:
        for port in pixels.pop().get_target_inputs():
            reader = port.get_node()
            names.add(reader.get_friendly_name())
            if reader.get_type_name() in ("MatMul", "Transpose"):  # still an image
                pixels += reader.outputs()
    return frozenset(names)


def _range(source: Output, ranges: Mapping[str, Range]) -> Range:
    """By the name that the value has in the fp32 graph, which OpenVINO keeps."""
    for name in source.get_names():
        if name in ranges:
            return ranges[name]
    raise ExportError(
        f"OpenVINO made '{source.get_node().get_friendly_name()}' of the encoder, whose range is "
        "not known. Check the version of openvino, or use --vision-precision int8w."
    )


def _round(group: _Group, found: Range) -> None:
    """Put a factor per channel and a rounding before the layers, and what undoes the factor into
    their weights."""
    ops = importlib.import_module("openvino.opset13")
    scales = _smoothing(group, found)
    rank = group.source.get_partial_shape().rank.get_length()
    factor = ops.constant((1 / scales).reshape([1] * (rank - 1) + [-1]))
    smooth = ops.multiply(group.source, factor)
    low, high = _with_whole_zero((found.low / scales).min(), (found.high / scales).max())
    ends = [ops.constant(np.float32(end)) for end in (low, high)]
    rounded = ops.fake_quantize(smooth, *ends, *ends, STEPS + 1)
    for layer, weight in group.layers:
        turned = bool(layer.get_attributes()["transpose_b"])  # [outputs, C], else [C, outputs]
        values = weight.data * (scales if turned else scales[:, None])
        steps = np.abs(values).max(axis=1 if turned else 0, keepdims=True) / LARGEST
        steps[steps == 0] = 1.0
        codes = np.rint(values / steps).astype(np.int8)
        wide = ops.convert(ops.constant(codes, shared_memory=True), "f32")
        layer.input(0).replace_source_output(rounded.output(0))
        layer.input(1).replace_source_output(ops.multiply(wide, ops.constant(steps)).output(0))


def _smoothing(group: _Group, found: Range) -> Floats:
    """By what each channel is divided, [C], so that activations and weights share its range."""
    activations = np.maximum(np.maximum(-found.low, found.high), LEAST)
    weights = np.full_like(activations, LEAST)
    for layer, weight in group.layers:
        outputs = 0 if layer.get_attributes()["transpose_b"] else 1
        weights = np.maximum(weights, np.abs(weight.data).max(axis=outputs))
    scales = activations**SMOOTHING / weights ** (1 - SMOOTHING)
    return np.asarray(np.maximum(scales, np.quantile(scales, WEAKEST)), np.float32)


def _with_whole_zero(low: float, high: float) -> tuple[float, float]:
    """The range with zero in it and on a step, no end of it moved inwards."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if low == high:
        return 0.0, 1.0
    # At least one step for either side that has values.
    zero = min(max(round(-low / (high - low) * STEPS), low < 0), STEPS - (high > 0))
    step = max(-low / max(zero, 1), high / max(STEPS - zero, 1))
    return -zero * step, (STEPS - zero) * step


__all__ = ["LARGEST", "SMOOTHING", "int8_activations"]
