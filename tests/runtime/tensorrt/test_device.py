"""How a GPU is found, and that a failing call of CUDA is told. The calls are held against the real
`cuda.bindings` where that is installed; it needs no GPU for its signatures.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from laco_runtimes.engines import tensorrt_device
from laco_runtimes.engines.tensorrt_device import Device, open_device, why_no_device
from laco_runtimes.errors import EngineError, MissingPackageError


class FakeCuda:
    """`cuda.bindings.runtime`: every function returns an error code and then its results."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.calls: list[str] = []
        self.failing: str | None = None
        self.results: dict[str, tuple[Any, ...]] = {
            "cudaGetDeviceCount": (gpus,),
            "cudaGetDeviceProperties": (
                SimpleNamespace(name=b"NVIDIA RTX", major=8, minor=9, integrated=0),
            ),
            "cudaDriverGetVersion": (13010,),
            "cudaStreamCreate": (11,),
            "cudaMalloc": (4096,),
            "cudaStreamEndCapture": ("graph",),
            "cudaGraphInstantiate": ("ready",),
            "cudaGetErrorString": (b"out of memory",),
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            results = self.results.get(name, ())
            return (2, *[None] * len(results)) if name == self.failing else (0, *results)

        return call


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    real = importlib.import_module

    def find(name: str) -> Any:
        return fake if name == "cuda.bindings.runtime" else real(name)

    monkeypatch.setattr(tensorrt_device.importlib, "import_module", find)
    return fake


def test_a_gpu_is_described(cuda: FakeCuda) -> None:
    facts = open_device("auto").facts
    assert (facts.index, facts.name, facts.compute_capability, facts.driver, facts.integrated) == (
        *(0, "NVIDIA RTX", "8.9", "13.1"),
        False,
    )


@pytest.mark.parametrize("asked", ["cpu", "cuda:", "cuda:x", "gpu", "cuda:-1", ""])
def test_an_unknown_device_is_refused(asked: str) -> None:
    with pytest.raises(EngineError, match="TensorRT has no device"):
        open_device(asked)


def test_a_gpu_that_is_not_there_is_named(cuda: FakeCuda) -> None:
    with pytest.raises(EngineError, match=r"no GPU 3 here\. Choose among: cuda:0"):
        open_device("cuda:3")


def test_without_a_driver_the_reason_is_given(cuda: FakeCuda) -> None:
    cuda.failing = "cudaGetDeviceCount"
    assert why_no_device() == (
        "no NVIDIA GPU can be used here (out of memory). Check the driver with nvidia-smi, or "
        "export for onnxruntime or openvino."
    )


def test_without_a_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(index: int) -> Device:
        raise ModuleNotFoundError("no", name="cuda")

    monkeypatch.setattr(tensorrt_device, "OPENERS", (missing, missing))
    with pytest.raises(MissingPackageError, match=re.escape("'laco-deploy[tensorrt]'")):
        open_device("auto")


@pytest.mark.parametrize(
    ("failing", "work"),
    [
        ("cudaMalloc", lambda device: device.allocate(8)),
        ("cudaMemcpyAsync", lambda device: device.upload(np.zeros(2), device.allocate(16))),
        ("cudaMemcpyAsync", lambda device: device.download(device.allocate(16), np.zeros(2))),
        ("cudaStreamSynchronize", lambda device: device.synchronize()),
        ("cudaSetDevice", lambda device: device.activate()),
        ("cudaGraphInstantiate", lambda device: device.capture(lambda: None)),
    ],
)
def test_a_call_that_fails_is_named(cuda: FakeCuda, failing: str, work: Any) -> None:
    device = open_device("auto")
    cuda.failing = failing
    with pytest.raises(EngineError, match=f"{failing} failed: out of memory"):
        work(device)


def test_a_copy_that_does_not_fit_is_refused(cuda: FakeCuda) -> None:
    device = open_device("auto")
    buffer = device.allocate(8)
    for array in (np.zeros(3), np.zeros((4, 4), np.int8)[:, ::2]):
        with pytest.raises(EngineError, match="cannot be copied"):
            device.upload(array, buffer)
        with pytest.raises(EngineError, match="cannot be copied"):
            device.download(buffer, array)
    assert "cudaMemcpyAsync" not in cuda.calls


def test_what_is_recorded_is_launched_and_freed(cuda: FakeCuda) -> None:
    device = open_device("auto")
    graph = device.capture(lambda: None)
    graph.launch()
    del graph
    assert cuda.calls[-6:] == [
        *("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"),
        *("cudaGraphDestroy", "cudaGraphLaunch", "cudaGraphExecDestroy"),
    ]


def test_a_recording_that_fails_or_is_cancelled_is_ended(cuda: FakeCuda) -> None:
    device = open_device("auto")

    def cancelled() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.capture(cancelled)
    assert cuda.calls[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]


def used_functions() -> set[str]:
    source = Path(inspect.getsourcefile(tensorrt_device) or "").read_text()
    return set(re.findall(r"\bcuda[A-Z]\w+", source))


def test_every_function_that_is_used_is_in_the_bindings() -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="needs cuda-bindings, which imports without a GPU"
    )
    missing = [
        name
        for name in used_functions()
        if not hasattr(runtime, name)
        and not hasattr(runtime.cudaMemcpyKind, name)
        and not hasattr(runtime.cudaStreamCaptureMode, name)
    ]
    assert len(used_functions()) > 12
    assert missing == []
