"""Weights and activations of an OpenVINO model in fewer bits: NNCF, without its telemetry."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from laco_export.targets.base import CompileRequest
from laco_export.targets.openvino_genai import EXTRA
from laco_runtimes.engines.openvino import import_openvino, latency_config, openvino_core
from laco_runtimes.errors import ExportError, MissingPackageError

if TYPE_CHECKING:
    from openvino import Model, Node
    from openvino.op import Constant


GROUP_SIZES = (128, 64, 32)
"""Weights that share a scale in int4, largest first."""

SHARE_OF_INT4 = 1.0
"""Of the layers between embeddings and head, which stay in 8 bits."""

EXTREMES = {"ReduceMax": np.max, "ReduceMin": np.min}
"""What NNCF asks of weights, by the nodes that it does so with."""

SMOOTHING = 0.5
"""How much of the range of activations goes over to the weights."""


def import_nncf() -> ModuleType:
    """NNCF, which must not report what it is used for.

    Raises:
        MissingPackageError: it is not installed.
    """
    import_openvino()  # takes the telemetry package away first; NNCF then uses a stub
    try:
        with _without_torch():
            nncf = importlib.import_module("nncf")
    except ImportError:
        raise MissingPackageError("nncf", EXTRA) from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def bfloat16_weights(model: Model, request: CompileRequest) -> Model:
    """Float weights of two and more dimensions as bfloat16, widened where they are read."""
    openvino = import_openvino()
    ops = importlib.import_module("openvino.opset13")
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or len(node.shape) < 2:
            continue
        if node.get_element_type() != openvino.Type.f32:
            continue
        readers = list(node.output(0).get_target_inputs())
        narrow = openvino.Tensor(openvino.Type.bf16, openvino.Shape(list(node.shape)))
        narrow.data.view(np.uint16)[...] = _rounded(node.get_data())
        wide = ops.convert(openvino.op.Constant(narrow, shared_memory=True), "f32")
        wide.get_rt_info()["decompression"] = ""
        for reader in readers:
            reader.replace_source_output(wide.output(0))
    return model


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 to the upper halves of its bits, to nearest and ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def int8_weights(model: Model, request: CompileRequest) -> Model:
    """Every dense weight and the embeddings in 8 bits, one scale per output channel."""
    nncf = import_nncf()
    _outputs_first(model)
    with _quiet():
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def int4_weights(model: Model, request: CompileRequest) -> Model:
    """Dense weights in 4 bits, one scale per group of inputs; head and embeddings in 8 bits.

    Raises:
        ExportError: no group size divides the inputs of every layer.
    """
    nncf = import_nncf()
    group_size = _group_size(model)
    _outputs_first(model)
    with _quiet():
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            ratio=SHARE_OF_INT4,
            group_size=group_size,
            backup_mode=nncf.BackupMode.INT8_SYM,
        )


def int8_activations(model: Model, request: CompileRequest) -> Model:
    """Weights and activations in 8 bits, by the ranges seen on calibration images.

    Raises:
        ExportError: there are no calibration images.
    """
    if request.calibration is None:
        raise ExportError(
            "int8 needs calibration images, and none were given. "
            "Give --calibration, or use --vision-precision int8w."
        )
    nncf = import_nncf()
    images = np.load(request.calibration, mmap_mode="r", allow_pickle=False)  # [images, 3, S, S]
    with _quiet(), _inferences_as_ours():
        model = nncf.quantize(
            model,
            nncf.Dataset(list(range(len(images))), lambda index: images[index][None]),
            model_type=nncf.ModelType.TRANSFORMER,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_readers_of_pixels(model) + _attentions(model)),
            # Weights of 7 bits in all layers, not only the first: a CPU without VNNI adds products
            # in pairs of 16 bits, which overflow with 8.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                # The outermost of all images rather than their mean: a range that cuts off a blank
                # page costs more than a step of 1/255 that is a little wider.
                activations_range_estimator_params=_outermost(),
                smooth_quant_alphas=_smoothing(),
            ),
        )
    _outputs_first(model)  # now, when weights have a quarter of the bytes
    return model


@contextlib.contextmanager
def _inferences_as_ours() -> Iterator[None]:
    """Let NNCF infer as our engine does: in the one Core, and kernels divided as threads come.

    It asks for the ranges of weights, too, by nodes in the graph. OpenVINO would fold these when it
    compiles, number by number: 32 of the 39 s that it takes for AIMv2-Large. Numpy does it here.
    """
    module = importlib.import_module("nncf.openvino.engine")
    engine = module.OVNativeEngine
    begin = engine.__init__

    def compiled(self: Any, model: Model, use_fp32_precision: bool = True) -> None:
        _fold_extremes(model)
        core = openvino_core()
        config = latency_config(core, "CPU")
        if use_fp32_precision:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        graph = core.compile_model(model, "CPU", config)
        self.engine = module.OVCompiledModelEngine(graph, module.model_has_state(model))

    engine.__init__ = compiled
    try:
        yield
    finally:
        engine.__init__ = begin


def _fold_extremes(model: Model) -> None:
    """Replace the least and the largest number of a constant by what they are."""
    ops = importlib.import_module("openvino.opset13")
    for node in model.get_ordered_ops():
        if node.get_type_name() not in EXTREMES:
            continue
        source, axes = (value.get_node() for value in node.input_values())
        absolute = source.get_type_name() == "Abs"
        weight = source.input_value(0).get_node() if absolute else source
        if weight.get_type_name() != "Constant":
            continue
        values = np.abs(weight.data) if absolute else weight.data
        found = EXTREMES[node.get_type_name()](
            values, axis=tuple(axes.data.ravel()), keepdims=node.get_attributes()["keep_dims"]
        )
        constant = ops.constant(np.asarray(found))
        constant.output(0).set_names(node.output(0).get_names())
        node.output(0).replace(constant.output(0))


def _readers_of_pixels(model: Model) -> list[str]:
    """Names of the layers that embed patches, which stay as they are, and of what makes a smaller
    image before them.

    They are less than a hundredth of the work, and rounding pixels is what all patches have in
    common: the least cosine of a plain grey image in SigLIP with random weights was 0.65.
    """
    names, pixels = [], list(model.inputs)
    while pixels:
        for port in pixels.pop().get_target_inputs():
            reader = port.get_node()
            names.append(reader.get_friendly_name())
            if reader.get_type_name() in ("MatMul", "Transpose"):  # still an image
                pixels += reader.outputs()
    return names


def _attentions(model: Model) -> list[str]:
    """Their names: their inputs stay in floats.

    Rounded ones take attention apart where there is no VNNI: 0.39 s of AIMv2-Large's encoder in
    place of 0.30 (not measured elsewhere).
    """
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "ScaledDotProductAttention"
    ]


def _smoothing() -> object:
    """SmoothQuant's own default (Xiao et al. 2023, section 4). NNCF's 0.95 leaves weights of 7 bits
    too little: least cosine of AIMv2-Large with random weights 0.977, with 0.5 it is 0.996."""
    parameters = importlib.import_module("nncf.quantization.advanced_parameters")
    return parameters.AdvancedSmoothQuantParameters(matmul=SMOOTHING)


def _outermost() -> object:
    ranges = importlib.import_module("nncf.quantization.range_estimator")
    return ranges.RangeEstimatorParametersSet.MINMAX


def _group_size(model: Model) -> int:
    """The largest of `GROUP_SIZES` that divides the inputs of every dense layer."""
    widths = {
        int(weight.shape[-1 if dense.get_attributes()["transpose_b"] else -2])
        for dense, weight in _dense_layers(model)
    }
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    raise ExportError(
        f"int4 needs layers whose width is a multiple of {GROUP_SIZES[-1]}, and this model has "
        f"widths {sorted(widths)}. Use --llm-precision int8."
    )


def _outputs_first(model: Model) -> None:
    """Weights as [outputs, inputs], the order that compressed ones are read in.

    In the other order a plugin turns them when it loads the model and holds them twice.
    """
    ops = importlib.import_module("openvino.opset13")
    for dense in model.get_ordered_ops():
        if dense.get_type_name() != "MatMul" or dense.get_attributes()["transpose_b"]:
            continue
        weight = dense.input_value(1).get_node()
        if _is_stored(weight) and len(weight.get_output_shape(0)) == 2:
            layer = ops.matmul(dense.input_value(0), _turned(weight), False, True)
            layer.set_friendly_name(dense.get_friendly_name())
            layer.output(0).set_names(dense.output(0).get_names())
            dense.output(0).replace(layer.output(0))


def _is_stored(weight: Node) -> bool:
    """A constant, or one that is widened and scaled."""
    while weight.get_type_name() in ("Convert", "Multiply", "Subtract"):
        weight = weight.input_value(0).get_node()
    return bool(weight.get_type_name() == "Constant")


def _turned(weight: Node) -> Node:
    ops = importlib.import_module("openvino.opset13")
    kind = weight.get_type_name()
    if kind == "Constant":
        values = weight.get_data()
        if values.size == 1:
            return weight
        return ops.constant(np.array(np.atleast_2d(values).T, order="C"), shared_memory=True)
    parts = [_turned(value.get_node()) for value in weight.input_values()]
    if kind == "Convert":
        return ops.convert(*parts, weight.get_element_type().get_type_name())
    return {"Multiply": ops.multiply, "Subtract": ops.subtract}[kind](*parts)


def _dense_layers(model: Model) -> list[tuple[Node, Constant]]:
    """Each MatMul with a weight, and the weight."""
    return [
        (node, weight)
        for node in model.get_ordered_ops()
        if node.get_type_name() == "MatMul"
        for weight in [node.input_value(1).get_node()]
        if weight.get_type_name() == "Constant"
    ]


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """NNCF imports torch where it finds it: seconds and 250 MB for nothing."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars and tables on stdout, which is ours."""
    with contextlib.redirect_stdout(io.StringIO()), _without_torch():
        yield


__all__ = [
    "GROUP_SIZES",
    "import_nncf",
    "int4_weights",
    "int8_activations",
    "int8_weights",
]
