"""Dense layers in 8 bits as convolutions of 1 x 1, where those are the faster kernels.

On a CPU without VNNI, oneDNN multiplies 8-bit matrices in `jit_gemm`, which packs both of them anew
each time and is no faster than floats. Its convolution of 1 x 1 computes the same sums from weights
that were packed once, in half the time (docs/openvino.md). In memory alone, see `openvino_graph`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from openvino import Core, Dimension, Model, Node, Output

ELEMENTWISE = frozenset(
    {"Add", "Divide", "FakeQuantize", "Gelu", "Multiply", "Relu", "Sigmoid", "Subtract", "Swish"}
)
"""What is done between two layers without leaving the layout of images."""

WEIGHT = frozenset({"Convert", "Multiply", "Subtract"})
"""What stands between weights of 8 bits and the layer that reads them."""

STEPS = 256

NEAR = 1e-3
"""How far from a step zero may be, in steps: a range is stored in 32 bits."""

SLOW_KERNEL = "jit_gemm"
"""How the name of oneDNN's last resort for 8-bit products begins."""


def gemm_is_slow(core: Core) -> bool:
    """Whether the CPU plugin has no better kernel for a dense layer in 8 bits than `jit_gemm`."""
    from openvino import Model, Type
    from openvino import opset13 as ops

    width = 64
    rows = ops.parameter([width, width], Type.f32)
    bounds = [ops.constant(np.float32(bound)) for bound in (0, 2.55, 0, 2.55)]
    bytes_ = ops.constant(np.ones((width, width), np.int8))
    weight = ops.multiply(ops.convert(bytes_, "f32"), ops.constant(np.full((width, 1), 0.5, "f4")))
    layer = ops.matmul(ops.fake_quantize(rows, *bounds, 256), weight, False, True)
    compiled = core.compile_model(Model([layer], [rows]), "CPU", {})
    return any(
        info["primitiveType"].astype(str).startswith(SLOW_KERNEL)
        for node in compiled.get_runtime_model().get_ops()
        for info in [node.get_rt_info()]
        if "primitiveType" in info
    )


def convolve_layers(model: Model) -> int:
    """Replace each dense layer whose input and weights are rounded to 8 bits.

    Tokens [B, T, C] are read as images [B, C, H, W], which the plugin keeps with channels last:
    where B is known, going from one to the other moves nothing.

    Returns:
        How many there were.
    """
    layers, images = 0, _Images()
    for node in model.get_ordered_ops():
        weight = _rounded_weight(node)
        if weight is not None:
            images.convolve(node, weight)
            layers += 1
            continue
        if node.get_type_name() == "ScaledDotProductAttention":
            images.turn_key(node)
        if not images.keep(node):
            images.leave(node)
    if layers:
        model.validate_nodes_and_infer_types()
    return layers


class _Images:
    """Which outputs are images, [B, C, H, W], while a graph is walked in its order."""

    def __init__(self) -> None:
        self._images: set[str] = set()
        """Names of nodes whose output is one."""
        self._made: dict[str, Output] = {}
        """Images of tokens, by the node whose output these are."""
        self._tokens: dict[str, Output] = {}
        """And back."""
        self._behind: dict[str, Output] = {}
        """Images, by the node of the tokens that were made of them."""

    def convolve(self, layer: Node, weight: Node) -> None:
        """Put a convolution in the place of a dense layer."""
        from openvino import opset13 as ops

        source = layer.input_value(0)
        turned = not layer.get_attributes()["transpose_b"]
        whole = ops.convolution(
            self._image(source), as_filters(weight, turned=turned), [1, 1], [0, 0], [0, 0], [1, 1]
        )
        whole.set_friendly_name(layer.get_friendly_name())
        layer.output(0).replace(whole.output(0))
        self._images.add(whole.get_name())

    def keep(self, node: Node) -> bool:
        """Let a node work on images, if it can and its inputs are; else nothing is changed."""
        from openvino import opset13 as ops

        if node.get_type_name() not in ELEMENTWISE:
            return False
        vectors = []
        for port in node.inputs():
            source = port.get_source_output().get_node()
            if source.get_type_name() != "Constant":
                if source.get_name() not in self._images:
                    return False
            elif (size := int(np.prod(source.get_output_shape(0)))) > 1:
                if source.get_output_shape(0)[-1] != size:
                    return False  # differs by token
                vectors.append((port, source))
        for port, source in vectors:
            vector = ops.constant(np.array(source.data).reshape(-1, 1, 1))
            port.replace_source_output(vector.output(0))
        node.validate_and_infer_types()
        self._images.add(node.get_name())
        return True

    def leave(self, node: Node) -> None:
        """Give a node tokens where it reads images."""
        from openvino import opset13 as ops

        for port in node.inputs():
            source = port.get_source_output()
            name = source.get_node().get_name()
            if name in self._images:
                if name not in self._tokens:
                    _, width, *grid = source.get_partial_shape()
                    rows = ops.transpose(source, ops.constant(np.array([0, 2, 3, 1])))
                    tokens = _shaped(rows, math.prod(_size(n) for n in grid), _size(width))
                    self._tokens[name] = tokens.output(0)
                    self._behind[tokens.get_name()] = source
                port.replace_source_output(self._tokens[name])

    def turn_key(self, attention: Node) -> None:
        """Split the image of a key into heads, where its tokens are split.

        The product with the query needs it as [B, heads, d, T], which an image nearly is.
        """
        from openvino import opset13 as ops

        heads = attention.input_value(1)
        apart = _behind(heads, "Transpose", "Reshape")
        image = apart and self._behind.get(apart.get_node().get_name())
        shape = heads.get_partial_shape()  # [B, heads, T, d]
        if not image or any(size.is_dynamic for size in list(shape)[1:]):
            return
        count, tokens, width = map(_size, list(shape)[1:])
        split = heads.get_node().input_value(0).get_partial_shape()  # [B, T, heads, d]
        if (
            list(split)[1:] != [tokens, count, width]
            or image.get_partial_shape()[1] != count * width
        ):
            return
        turned = ops.constant(np.array([0, 1, 3, 2]))
        key = ops.transpose(_shaped(image.get_node(), count, width, tokens), turned)
        attention.input(1).replace_source_output(key.output(0))

    def _image(self, source: Output) -> Output:
        from openvino import opset13 as ops

        name = source.get_node().get_name()
        if name in self._images:
            return source
        if name not in self._made:
            tokens, width = map(_size, list(source.get_partial_shape())[1:])
            rows = _shaped(source.get_node(), *_grid(tokens), width)
            self._made[name] = ops.transpose(rows, ops.constant(np.array([0, 3, 1, 2]))).output(0)
        return self._made[name]


def _grid(tokens: int) -> tuple[int, int]:
    """Rows and columns, as nearly square as can be: up to a fifth faster than a single column."""
    rows = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows


def _size(dimension: Dimension) -> int:
    return int(dimension.get_length())


def _behind(source: Output, *kinds: str) -> Output | None:
    """What nodes of these kinds, one behind the other, were made of."""
    for kind in kinds:
        if source.get_node().get_type_name() != kind:
            return None
        source = source.get_node().input_value(0)
    return source


def _shaped(node: Node, *sizes: int) -> Node:
    """[B, ...] as [B, *sizes]."""
    from openvino import opset13 as ops

    return ops.reshape(node, ops.constant(np.array([0, *sizes])), special_zero=True)


def _rounded_weight(layer: Node) -> Node | None:
    """The weight of a dense layer on tokens [B, T, C], if it and its input are in 8 bits."""
    if layer.get_type_name() != "MatMul" or layer.get_attributes()["transpose_a"]:
        return None
    source, weight = (value.get_node() for value in layer.input_values())
    if not _has_whole_zero(source):
        return None
    # The input may be an image by now; what was inferred for the layer itself is of tokens.
    tokens = layer.get_output_partial_shape(0)
    if tokens.rank.is_dynamic or tokens.rank.get_length() != 3 or tokens[1].is_dynamic:
        return None
    stored = weight
    while stored.get_type_name() in WEIGHT:
        stored = stored.input_value(0).get_node()
    if stored.get_type_name() != "Constant" or len(weight.get_output_shape(0)) != 2:
        return None
    return weight if stored.get_element_type().get_type_name() == "i8" else None


def _has_whole_zero(node: Node) -> bool:
    """Whether it rounds to 256 steps of which zero is one, as NNCF does.

    The plugin moves the zero of a convolution's input to the nearest step, wherever it is: all
    inputs would be off by up to half a step in the same direction.
    """
    if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != STEPS:
        return False
    ranges = [node.input_value(port).get_node() for port in range(1, 5)]
    if any(one.get_type_name() != "Constant" or one.get_data().size != 1 for one in ranges):
        return False
    low, high, *found = (float(one.get_data().item()) for one in ranges)
    zero = -low / (high - low) * (STEPS - 1) if high > low else math.inf
    return found == [low, high] and math.isfinite(zero) and abs(zero - round(zero)) < NEAR


def as_filters(weight: Node, *, turned: bool) -> Node:
    """Weights [N, C], or [C, N] if turned, as [N, C, 1, 1], with what is done to them."""
    from openvino import opset13 as ops

    if weight.get_type_name() == "Constant":
        return _filters(weight, turned=turned)
    one, *two = (as_filters(value.get_node(), turned=turned) for value in weight.input_values())
    if weight.get_type_name() == "Convert":
        return ops.convert(one, weight.get_element_type().get_type_name())
    change = {"Multiply": ops.multiply, "Subtract": ops.subtract}[weight.get_type_name()]
    return change(one, *two)


def _filters(constant: Node, *, turned: bool) -> Node:
    from openvino import opset13 as ops

    stored = [int(size) for size in constant.get_output_shape(0)]
    rows, columns = [1] * (2 - len(stored)) + stored  # as it is broadcast
    if turned:
        rows, columns = columns, rows
        if len(stored) == 2:
            constant = ops.transpose(constant, ops.constant(np.array([1, 0])))
    filters = ops.constant(np.array([rows, columns, 1, 1]))
    return ops.reshape(constant, filters, special_zero=False)


__all__ = ["as_filters", "convolve_layers", "gemm_is_slow"]
