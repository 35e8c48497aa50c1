"""The last dense layer of a decoder, with weights in 8 bits, as a convolution of 1 x 1.

It is the largest layer there is, the vocabulary times the width, and a step reads it once. On a CPU
without VNNI OpenVINO widens its weights to floats before it multiplies, at three quarters of the
speed of memory; oneDNN's convolution multiplies bytes, as fast as they come. So that no more is
rounded than must be, an input goes in as two bytes (docs/runtime.md). In memory alone, see
`openvino_graph`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.base import Floats
from laco_runtimes.engines.openvino_pointwise import as_filters, gemm_is_slow

if TYPE_CHECKING:
    from openvino import Core, Model, Node

BITS = 7
"""Of an input in each of its bytes. Two products of bytes are added in 16 bits without VNNI, which
holds 2 x 127 x 128 and not 2 x 255 x 128."""

LARGEST = 2 ** (2 * BITS - 1) - 1
"""That the largest number of a position is rounded to, in steps."""

LEAST = 1e-30
"""Of a position's largest number, where all of them are zero."""


def convolve_head(core: Core, model: Model) -> bool:
    """Replace the layer whose output are the logits.

    Args:
        core: whose CPU is asked for its kernels if there is such a layer.
        model: a decoder on tokens, [tokens, 1, D]; is changed.

    Returns:
        Whether it could be done. If so, logits are [1, V, tokens, 1], not [tokens, 1, V]: to turn
        them takes as long as a twelfth of the layer, and only where there is one token is there
        nothing to turn.
    """
    head = model.output("logits").get_node().input_value(0).get_node()
    if head.get_type_name() != "MatMul" or not head.get_attributes()["transpose_b"]:
        return False
    position, weight = (value.get_node() for value in head.input_values())
    stored = _stored(weight)
    if stored is None or not gemm_is_slow(core):
        return False
    rows, scale = stored
    sums = rows.sum(1, dtype=np.int32, keepdims=True) * scale  # [V, 1]
    head.output(0).replace(_convolved(position, weight, sums[:, 0]).output(0))
    model.validate_nodes_and_infer_types()
    return True


def by_position(logits: Floats) -> Floats:
    """Logits of a decoder on tokens, as [tokens, V], whether its head was replaced or not."""
    replaced = logits.ndim > 3
    found: Floats = logits[0, :, :, 0].T if replaced else logits[:, 0]
    return found


def _stored(weight: Node) -> tuple[NDArray[np.int8], Floats] | None:
    """Rows of 8 bits, [V, D], and what they are multiplied by, [V, 1] or [1, 1].

    None where they are stored in any other way, with a zero of their own, say.
    """
    scale = np.ones((1, 1), np.float32)
    while weight.get_type_name() in ("Convert", "Multiply"):
        if weight.get_type_name() == "Multiply":
            factor = weight.input_value(1).get_node()
            if factor.get_type_name() != "Constant":
                return None
            scale = scale * np.asarray(factor.data, np.float32)
        weight = weight.input_value(0).get_node()
    if weight.get_type_name() != "Constant" or weight.get_element_type().get_type_name() != "i8":
        return None
    rows = np.asarray(weight.data)
    return (rows, scale) if scale.shape in ((1, 1), (len(rows), 1)) else None


def _convolved(position: Node, weight: Node, sums: Floats) -> Node:
    """Logits, [1, V, tokens, 1]."""
    from openvino import opset13 as ops

    def floats(*values: float) -> Node:
        return ops.constant(np.array(values, np.float32).reshape(1, 1, 1, -1))

    width = int(position.get_output_partial_shape(0)[2].get_length())
    rows = ops.reshape(position, ops.constant(np.array([1, 1, -1, width])), special_zero=False)
    image = ops.transpose(rows, ops.constant(np.array([0, 3, 2, 1])))  # [1, D, tokens, 1]
    axis = ops.constant(np.array([1]))
    largest = ops.reduce_max(ops.abs(image), axis, keep_dims=True)
    largest = ops.maximum(largest, floats(LEAST))

    # Whole numbers from 1 to 2 * LARGEST + 1, and of each its upper and its lower bits.
    half = 2.0**BITS
    steps = ops.multiply(image, ops.divide(floats(LARGEST), largest))
    steps = ops.round(ops.add(steps, floats(LARGEST + 1)), "half_to_even")
    upper = ops.floor(ops.multiply(steps, floats(1 / half)))
    both = ops.add(ops.multiply(steps, floats(0, 1)), ops.multiply(upper, floats(1, -half)))
    bounds = [floats(bound) for bound in (0, 255, 0, 255)]
    bytes_ = ops.fake_quantize(both, *bounds, 256)  # [1, D, tokens, 2]

    filters = as_filters(weight, turned=False)
    sums_of_bytes = ops.convolution(bytes_, filters, [1, 1], [0, 0], [0, 0], [1, 1])
    # What `LARGEST + 1` added to each input, spread on both halves.
    offset = -(LARGEST + 1) / (half + 1) * sums.reshape(1, -1, 1, 1)
    halves = ops.add(sums_of_bytes, ops.constant(offset.astype(np.float32)))
    high, low = ops.split(halves, ops.constant(np.int64(3)), 2).outputs()
    logits = ops.add(ops.multiply(high, floats(half)), low)
    # What is no number has become some byte, and the largest of the others may be taken for theirs;
    # nothing times their sum is nothing, or again no number.
    broken = ops.multiply(ops.reduce_sum(image, axis, keep_dims=True), floats(0))
    step = ops.add(ops.multiply(largest, floats(1 / LARGEST)), broken)
    return ops.multiply(logits, step)


__all__ = ["by_position", "convolve_head"]
