"""Devices and settings of each engine: what is asked for is what runs, or an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laco_runtimes.bundle import Bundle, open_bundle
from laco_runtimes.engines import load_engine, openvino, openvino_stateful
from laco_runtimes.engines.base import LoadRequest
from laco_runtimes.errors import ArgumentError, EngineError


def request_for(bundle: Bundle, **options: Any) -> LoadRequest:
    settings: dict[str, Any] = {"device": "auto", **options}
    return LoadRequest(bundle.root, bundle.manifest, bundle.variant("laco"), **settings)


@pytest.fixture(scope="module")
def onnx_bundle(bundle_for: Callable[[str], Path]) -> Bundle:
    pytest.importorskip("onnxruntime")
    return open_bundle(bundle_for("onnxruntime"))


@pytest.fixture(scope="module")
def openvino_bundle(bundle_for: Callable[[str], Path]) -> Bundle:
    pytest.importorskip("openvino")
    return open_bundle(bundle_for("openvino"))


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ONNX Runtime is asked to open; it opens it as well."""
    import onnxruntime

    seen: list[dict[str, Any]] = []
    real = onnxruntime.InferenceSession

    def session(model: Path | bytes, options: Any, providers: list[str]) -> Any:
        seen.append(
            {
                # A decoder that was changed in memory is none of the files.
                "name": model.stem if isinstance(model, Path) else "decoder",
                "threads": options.intra_op_num_threads,
                "optimisation": options.graph_optimization_level,
                "providers": providers,
            }
        )
        return real(model, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return seen


def test_onnxruntime_sets_threads_and_all_optimisations(
    onnx_bundle: Bundle, sessions: list[dict[str, Any]]
) -> None:
    from onnxruntime import GraphOptimizationLevel

    load_engine(request_for(onnx_bundle, threads=3))
    assert {one["name"]: one["threads"] for one in sessions} == {
        "vision_encoder": 3,
        "embed_tokens": 1,
        "decoder": 3,
    }
    assert {one["optimisation"] for one in sessions} == {GraphOptimizationLevel.ORT_ENABLE_ALL}


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_onnxruntime_runs_on_the_cpu_unless_asked(
    onnx_bundle: Bundle, sessions: list[dict[str, Any]], device: str
) -> None:
    engine = load_engine(request_for(onnx_bundle, device=device))
    assert engine.device == "cpu"
    assert (engine.reason == "asked for") == (device == "cpu")
    assert [one["providers"] for one in sessions] == [["CPUExecutionProvider"]] * 3


def test_onnxruntime_without_cuda_says_what_to_install(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"pip install 'laco-deploy\[onnxruntime-gpu\]'"):
        load_engine(request_for(onnx_bundle, device="cuda"))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnxruntime_with_a_cuda_that_does_not_start_does_not_fall_back(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    # As a GPU build without its CUDA libraries: listed, and put aside when a session is made.
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(EngineError, match="could not start device 'cuda'"):
        load_engine(request_for(onnx_bundle, device="cuda"))


REAL_CORE = openvino.openvino_core


class CoreWithGpu:
    """OpenVINO with a "GPU": its CPU under that name, or one that refuses every graph."""

    refuses = False
    compiled: list[tuple[str, dict[str, str]]]
    caches: list[str]
    """Type of the KV cache of each."""

    def __init__(self) -> None:
        self._core = REAL_CORE()
        self.available_devices = ["CPU", "GPU.0", "GPU.1"]

    def get_property(self, device: str, name: str) -> Any:
        return self._core.get_property("CPU", name)

    def read_model(self, path: Path) -> Any:
        return self._core.read_model(path)

    def compile_model(self, graph: Any, device: str, config: dict[str, str]) -> Any:
        if device.startswith("GPU") and self.refuses:
            raise RuntimeError("Exception from src/gpu.cpp:7:\nout of device memory\n\n")
        self.compiled.append((device, config))
        model = self._core.compile_model(graph, "CPU", config)
        self.caches.append(model.get_property("KV_CACHE_PRECISION").to_string())
        return model


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[CoreWithGpu]:
    core = type("Core", (CoreWithGpu,), {"compiled": [], "caches": []})
    monkeypatch.setattr(openvino, "openvino_core", core)
    return core


def test_openvino_auto_takes_a_gpu_that_compiles(
    openvino_bundle: Bundle, gpu: type[CoreWithGpu]
) -> None:
    engine = load_engine(request_for(openvino_bundle))
    assert engine.device == "GPU"
    assert "compiles" in engine.reason
    # Encoder and decoder: embeddings are looked up in the table of the third graph.
    assert [device for device, _ in gpu.compiled] == ["GPU"] * 2


def test_openvino_auto_takes_the_cpu_when_the_gpu_refuses_and_says_so(
    openvino_bundle: Bundle, gpu: type[CoreWithGpu]
) -> None:
    gpu.refuses = True
    engine = load_engine(request_for(openvino_bundle))
    assert engine.device == "CPU"
    assert "out of device memory" in engine.reason
    assert "gpu.cpp" not in engine.reason


@pytest.mark.parametrize("device", ["GPU", "gpu", "GPU.1"])
def test_openvino_never_falls_back_from_an_explicit_device(
    openvino_bundle: Bundle, gpu: type[CoreWithGpu], device: str
) -> None:
    assert load_engine(request_for(openvino_bundle, device=device)).device == device.upper()
    gpu.refuses = True
    with pytest.raises(EngineError, match=f"for {device.upper()} failed: out of device memory"):
        load_engine(request_for(openvino_bundle, device=device))


def test_openvino_threads_mean_the_cpu(openvino_bundle: Bundle, gpu: type[CoreWithGpu]) -> None:
    engine = load_engine(request_for(openvino_bundle, threads=1))
    assert (engine.device, engine.reason) == ("CPU", "CPU threads were asked for")
    with pytest.raises(ArgumentError, match="threads are for the CPU"):
        load_engine(request_for(openvino_bundle, device="GPU", threads=1))


def test_openvino_computes_fp32_graphs_and_their_cache_in_float32(
    openvino_bundle: Bundle, gpu: type[CoreWithGpu]
) -> None:
    load_engine(request_for(openvino_bundle, device="CPU", threads=2))
    assert len(gpu.compiled) == 2
    for _, config in gpu.compiled:
        assert config == {
            "PERFORMANCE_HINT": "LATENCY",
            "TBB_PARTITIONER": "AUTO",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": "2",
        }
    # The cache's type stands in the file, for openvino_genai too.
    assert gpu.caches[-1] == "f32"


@pytest.mark.parametrize(
    ("device", "known", "asked"),
    [("CPU", True, "AUTO"), ("CPU", False, None), ("GPU.0", True, None)],
)
def test_openvino_divides_kernels_as_threads_come_where_its_cpu_plugin_can(
    openvino_bundle: Bundle, gpu: type[CoreWithGpu], device: str, known: bool, asked: str | None
) -> None:
    """Another build refuses a property that it does not know, and the model would not load."""

    def get_property(core: CoreWithGpu, device: str, name: str) -> Any:
        found = core._core.get_property("CPU", name)
        if name == "SUPPORTED_PROPERTIES" and not known:
            return [one for one in found if one != "TBB_PARTITIONER"]
        return found

    gpu.get_property = get_property  # type: ignore[method-assign]
    load_engine(request_for(openvino_bundle, device=device))
    assert [config.get("TBB_PARTITIONER") for _, config in gpu.compiled] == [asked, asked]


def test_openvino_leaves_the_precision_of_other_weights_to_the_device(
    openvino_bundle: Bundle, gpu: type[CoreWithGpu]
) -> None:
    precision = {**openvino_bundle.manifest.precision, "decoder": "int8"}
    manifest = openvino_bundle.manifest.model_copy(update={"precision": precision})
    bundle = Bundle(openvino_bundle.root, manifest)
    load_engine(request_for(bundle, device="CPU"))
    hinted = ["INFERENCE_PRECISION_HINT" in config for _, config in gpu.compiled]
    assert hinted == [True, False]


@pytest.mark.parametrize("forgotten", [0, 64])
def test_openvino_shortens_a_cache_that_it_keeps_in_eight_bits(
    openvino_bundle: Bundle, forgotten: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "page_attention", lambda model, layers: None)
    monkeypatch.setattr(openvino_stateful, "MAX_FORGOTTEN", forgotten)
    precision = dict.fromkeys(openvino_bundle.manifest.precision, "int8")
    manifest = openvino_bundle.manifest.model_copy(update={"precision": precision})
    language = load_engine(
        request_for(Bundle(openvino_bundle.root, manifest), device="CPU")
    ).language

    ids = [5, 77, 12, 200, 3, 149]
    language.prefill(language.embed(ids))
    expected = language.step(61)
    for token in (8, 9, 10):
        language.step(token)
    language.rewind(len(ids))
    # Eight bits are rounded once more on the way out and in again, where states are written anew.
    assert np.corrcoef(language.step(61), expected)[0, 1] > 0.999


SIGNAL_AFTER_TWO = """
import faulthandler, gc, os, signal, sys
from pathlib import Path
from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadRequest

faulthandler.enable()  # its stack for signals is what OpenVINO puts its own in place of
bundle = open_bundle(Path(sys.argv[1]))
request = LoadRequest(bundle.root, bundle.manifest, bundle.variant("laco"), device="cpu")
first, second = load_engine(request), load_engine(request)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no signals to handle")
def test_openvino_engines_that_go_in_any_order_leave_signals_working(
    openvino_bundle: Bundle,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_TWO, openvino_bundle.root],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
