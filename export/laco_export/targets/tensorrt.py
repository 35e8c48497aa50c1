"""TensorRT and TensorRT-RTX: strongly typed ONNX that builds, and never a plan.

A plan is native code, bound to a GPU, a driver and a version, so the engine builds it on the device
(`laco_runtimes.plans`). What goes into the bundle is the graph it is built from, in the precision
asked for. TensorRT-RTX builds without a GPU, so there the export also proves that it builds.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from laco_export.half import HalfName, to_half
from laco_export.precision import PrecisionMenu, Precisions
from laco_export.qdq import FP8, INT4, INT8, Scheme, calibrate, quantize, quantize_table
from laco_export.targets.base import CompileRequest, TargetType
from laco_export.targets.tensorrt_audit import check_graph
from laco_runtimes import graphs
from laco_runtimes.engines.tensorrt_device import why_no_device
from laco_runtimes.errors import EngineError, ExportError
from laco_runtimes.graphs import CacheDType, GraphSpec
from laco_runtimes.plan_builder import BuildSettings, BuiltPlan, build_plan
from laco_runtimes.plan_products import PRODUCTS, Product
from laco_runtimes.plan_profiles import MAX_CONTEXT, make_profiles

logger = logging.getLogger("laco")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one precision is reached from the fp32 graph."""

    half: HalfName
    """Of everything that is not quantised or a norm."""
    weights: Scheme | None = None
    activations: bool = False
    """Activations are rounded like the weights, by calibration."""
    head: Scheme | None = None
    """Of the product that makes the logits, if it differs."""
    gpus: tuple[str, ...] = ("SM80", "SM86", "SM89", "SM120")
    """What the export proves that it builds for (TensorRT-RTX)."""


VISION: Mapping[str, Recipe] = {
    "fp16": Recipe("float16"),
    "bf16": Recipe("bfloat16"),
    "int8": Recipe("float16", INT8, activations=True),
    "int8w": Recipe("float16", INT8),
    # Ampere has no float8.
    "fp8": Recipe("float16", FP8, activations=True, gpus=("SM89", "SM120")),
}
LANGUAGE: Mapping[str, Recipe] = {
    "fp16": Recipe("float16"),
    "bf16": Recipe("bfloat16"),
    "int8": Recipe("float16", INT8),
    "int4": Recipe("float16", INT4, head=INT8),
}
"""No fp32: neither product has a fused kernel for attention in it, and refuses to build. No fp8 for
the language model: it needs ranges of activations, and calibration is by images for the encoder."""

MENU = PrecisionMenu(
    vision=tuple(VISION),
    llm=tuple(LANGUAGE),
    # Three more bits than bf16; norms and the residual stream, which could overflow, stay in fp32.
    exact=Precisions("fp16", "fp16"),
    # Where no GPU is, nothing can be compared before sealing, so nothing daring stands first.
    fast=(Precisions("fp16", "int8"), Precisions("fp16", "fp16")),
)

CACHE_DTYPES: Mapping[str, CacheDType] = {name: one.half for name, one in LANGUAGE.items()}


def compile_graph(request: CompileRequest, product: str) -> str:
    """Write the graph in its precision, check it, and build it where that needs no GPU.

    `onnx/x.onnx` becomes `<product>/x.onnx` in the path; baselines keep their folder inside.

    Raises:
        ExportError: no calibration images for int8 or fp8 activations, an operator that TensorRT
            does not take, or a graph that does not build.
    """
    spec = _spec(request)
    recipe = (VISION if spec.name == "vision_encoder" else LANGUAGE)[request.precision]
    inside = PurePosixPath(request.onnx)
    path = PurePosixPath(product, *inside.parts[1 if inside.parts[0] == "onnx" else 0 :])
    out = request.root / path
    out.parent.mkdir(parents=True, exist_ok=True)
    source = request.root / request.onnx
    with tempfile.TemporaryDirectory(prefix=".qdq.", dir=request.root) as folder:
        if recipe.weights is not None:
            source = _quantized(request, recipe, recipe.weights, source, Path(folder))
        to_half(source, out, recipe.half, spec)
    old = request.form is not None and request.form.flavour == "concat"
    check_graph(out, old=old)
    if PRODUCTS[product].portable:
        built = prove(PRODUCTS[product], out, spec, recipe, request.form)
        logger.info(
            "%s builds for %s in %.0f s: a plan of %.1f MB",
            path,
            ", ".join(recipe.gpus),
            built.seconds,
            len(built.data) / 1e6,
        )
    return str(path)


def prove(
    product: Product,
    onnx: Path,
    spec: GraphSpec,
    recipe: Recipe,
    form: graphs.DecoderForm | None = None,
) -> BuiltPlan:
    """Build a plan for the GPUs of a recipe, as proof; it is not kept.

    Raises:
        ExportError: it does not build.
    """
    context = (form.capacity if form is not None else None) or MAX_CONTEXT
    settings = BuildSettings(make_profiles(spec, context), compute_capabilities=recipe.gpus)
    try:
        return build_plan(product, onnx, settings)
    except EngineError as error:
        raise ExportError(str(error)) from error


def _spec(request: CompileRequest) -> GraphSpec:
    """Inputs and outputs as the engine sees them: the cache in the type of the form."""
    if request.form is None:
        return request.spec
    return graphs.decoder(request.language, request.form)


def _quantized(
    request: CompileRequest, recipe: Recipe, weights: Scheme, source: Path, folder: Path
) -> Path:
    target = folder / source.name
    if request.spec.name == "embed_tokens":
        quantize_table(source, target, recipe.half)
        return target
    scales = None
    if recipe.activations:
        if request.calibration is None:
            raise ExportError(
                f"{request.precision} rounds activations, whose ranges are found on images, and "
                "none are given. Name a folder with --calibration, or choose int8w or fp16."
            )
        scales = calibrate(source, request.calibration, weights)
    quantize(source, target, weights, recipe.half, head=recipe.head, activations=scales)
    return target


def _row(product: Product) -> TargetType:
    return TargetType(
        name=product.name,
        package=product.package,
        extra=product.extra,
        flavour="static",
        other_flavours=("concat",),
        cache_dtypes=CACHE_DTYPES,
        context=MAX_CONTEXT,
        precisions=MENU,
        calibrated=tuple(name for name, recipe in VISION.items() if recipe.activations),
        compile=functools.partial(compile_graph, product=product.name),
        check_runs=why_no_device,
    )


TARGET = _row(PRODUCTS["tensorrt"])
TARGET_RTX = _row(PRODUCTS["tensorrt-rtx"])

__all__ = ["LANGUAGE", "MENU", "TARGET", "TARGET_RTX", "VISION", "Recipe", "compile_graph", "prove"]
