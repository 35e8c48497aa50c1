"""One tiny inference per engine, on each device that it names. Run apart (`doctor.apart`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from laco_deploy.doctor.drivers import check_nvidia, unseen_intel
from laco_deploy.doctor.finding import Finding, finding_of
from laco_deploy.doctor.graph import BIAS, SPEC, WEIGHTS, X, Y, tiny_onnx
from laco_runtimes.engines.base import Floats, engine_errors
from laco_runtimes.errors import LacoError

if TYPE_CHECKING:
    from laco_runtimes.engines.tensorrt_device import Device
    from laco_runtimes.plan_products import Namespace, Product


@dataclass(frozen=True, slots=True)
class Probe:
    """How one engine is asked."""

    package: str
    """Import name."""
    extra: str
    """Extra of laco-deploy that brings it."""
    ask: Callable[[], Iterator[Finding]]


def ask_openvino() -> Iterator[Finding]:
    """Every device that OpenVINO names, and those that it should and does not."""
    from laco_runtimes.engines.openvino import openvino_core

    core = openvino_core()
    devices = list(core.available_devices)

    def infer(device: str) -> Floats:
        model = core.compile_model(core.read_model(tiny_onnx(), b""), device)
        return np.asarray(model({"x": X})["y"])

    for device in devices:
        remedy = "Install OpenVINO again." if device == "CPU" else f"Update the driver of {device}."
        try:
            title = str(core.get_property(device, "FULL_DEVICE_NAME")).strip()
        except RuntimeError:  # a device that is listed and does not start
            title = "no name"
        yield _asked("openvino", device, title, partial(infer, device), remedy)
    yield from unseen_intel(devices)


def ask_onnxruntime() -> Iterator[Finding]:
    """The CPU, and the GPU where the package is built for it."""
    import onnxruntime

    from laco_runtimes.engines.onnxruntime import PROVIDERS

    built = onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised

    def infer(provider: str) -> Floats:
        session = onnxruntime.InferenceSession(tiny_onnx(), options, [provider])
        if provider not in session.get_providers():  # it falls back by itself
            raise RuntimeError(f"{provider} did not start")
        return np.asarray(session.run(["y"], {"x": X})[0])

    for device, provider in PROVIDERS.items():
        if provider in built:
            yield _on_gpu_or_not(
                _asked(
                    "onnxruntime",
                    device,
                    provider,
                    partial(infer, provider),
                    "Install ONNX Runtime again."
                    if device == "cpu"
                    else "Install the CUDA and cuDNN that this version of onnxruntime-gpu names.",
                ),
                needs_gpu=device != "cpu",
            )
    if "CUDAExecutionProvider" not in built and _installed("onnxruntime-gpu"):
        yield Finding(
            area="engine",
            name="onnxruntime on cuda",
            state="failed",
            said="onnxruntime-gpu is installed, but the package onnxruntime lies over its files.",
            remedy="pip uninstall onnxruntime, then pip install --force-reinstall onnxruntime-gpu",
        )


def ask_tensorrt(name: str) -> Iterator[Finding]:
    """Build a plan and run it on the first GPU; where there is none, build it if that can be."""
    from laco_runtimes.engines.tensorrt_device import open_device
    from laco_runtimes.plan_products import PRODUCTS, import_product

    product = PRODUCTS[name]
    trt = import_product(product)
    if product.portable:
        make_plan(product)  # for no GPU in particular, which needs none; a LacoError is reported
    try:
        device = open_device("auto")
    except LacoError as error:
        yield _on_gpu_or_not(finding_of("engine", f"{name} on cuda", error), needs_gpu=True)
        return
    title = f"{device.facts.name}, {product.title} {trt.__version__}"
    remedy = "Check that this GPU and its driver are supported by this version."
    yield _asked(
        name, "cuda", title, lambda: run_plan(trt, device, make_plan(product, "CURRENT")), remedy
    )


def make_plan(product: Product, *targets: str) -> bytes:
    """A plan of the tiny graph, where the product is portable for the GPUs named, or for all."""
    from laco_runtimes.plan_builder import BuildSettings, build_plan

    with TemporaryDirectory(prefix="laco-doctor-") as folder:
        path = Path(folder) / "tiny.onnx"
        path.write_bytes(tiny_onnx())
        return build_plan(product, path, BuildSettings((), compute_capabilities=targets)).data


def run_plan(trt: Namespace, device: Device, plan: bytes) -> Floats:
    """Run a plan of the tiny graph once."""
    from laco_runtimes.engines.tensorrt_run import Binding, Execution, LoadedPlan

    device.activate()
    found = np.empty_like(Y)
    given, taken = device.allocate(X.nbytes), device.allocate(found.nbytes)
    execution = Execution(LoadedPlan(trt, device, plan, SPEC))
    device.upload(X, given)
    execution.bind({"x": Binding(given, X.shape), "y": Binding(taken, found.shape)})
    execution.enqueue()
    device.download(taken, found)
    return found


def ask_torch() -> Iterator[Finding]:
    """The CPU, and the first GPU where torch is built for CUDA and sees one."""
    import torch

    def infer(device: str) -> Floats:
        x, weights, bias = (torch.from_numpy(one).to(device) for one in (X, WEIGHTS, BIAS))
        found: Any = torch.relu(x @ weights + bias).cpu().numpy()
        return np.asarray(found)

    yield _asked("torch", "cpu", "CPU", partial(infer, "cpu"), "Install torch again.")
    if torch.version.cuda is None:
        return
    yield _on_gpu_or_not(
        _asked(
            "torch",
            "cuda",
            f"CUDA {torch.version.cuda}",
            partial(infer, "cuda"),
            "Update the NVIDIA driver, or install a torch built for an older CUDA.",
        ),
        needs_gpu=True,
    )


def _asked(
    engine: str, device: str, title: str, infer: Callable[[], Floats], remedy: str
) -> Finding:
    """Whether an inference gives the numbers it must."""
    name = f"{engine} on {device}"
    try:
        with engine_errors("a tiny inference", remedy):
            found = infer()
    except LacoError as error:
        return finding_of("engine", name, error)
    if not np.array_equal(found, Y):
        said = f"{title}: a tiny inference gives wrong numbers."
        return Finding(area="engine", name=name, state="failed", said=said, remedy=remedy)
    said = f"{title}: a tiny inference is right."
    return Finding(area="engine", name=name, state="ok", said=said)


def _on_gpu_or_not(finding: Finding, *, needs_gpu: bool) -> Finding:
    """No failure where there is no GPU: the engine is installed for another machine."""
    no_gpu = check_nvidia()[0].state in ("absent", "note")
    if not (needs_gpu and finding.state == "failed" and no_gpu):
        return finding
    said = "not asked: there is no NVIDIA GPU here."
    return Finding(area="engine", name=finding.name, state="note", said=said)


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


PROBES = {
    "onnxruntime": Probe("onnxruntime", "onnxruntime", ask_onnxruntime),
    "openvino": Probe("openvino", "openvino", ask_openvino),
    "tensorrt": Probe("tensorrt", "tensorrt", partial(ask_tensorrt, "tensorrt")),
    "tensorrt-rtx": Probe("tensorrt_rtx", "tensorrt-rtx", partial(ask_tensorrt, "tensorrt-rtx")),
    "torch": Probe("torch", "train", ask_torch),
}
"""Engines by the name of the export target, and PyTorch, which runs checkpoints."""


__all__ = ["PROBES", "Probe", "run_plan"]
