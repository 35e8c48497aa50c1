"""Memory, a stream and graphs of one NVIDIA GPU: all that the TensorRT engine asks of CUDA.

NVIDIA's `cuda-bindings` come first (megabytes); where torch with CUDA is there already, it serves
as well, so that an environment with torch needs no other package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.errors import EngineError, LacoError, MissingPackageError


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """Which GPU it is."""

    index: int
    name: str
    """As the driver calls it."""
    compute_capability: str
    """`8.9`."""
    driver: str
    """CUDA version of the driver, `13.0`."""
    integrated: bool = False
    """It shares the memory of the CPU, as on Jetson."""


class DeviceBuffer(Protocol):
    """Memory on the device, given back when it is no longer referred to."""

    @property
    def address(self) -> int:
        """What `set_tensor_address` is given."""

    @property
    def nbytes(self) -> int:
        """Size."""


class DeviceGraph(Protocol):
    """Recorded work, of which all addresses and shapes are fixed."""

    def launch(self) -> None:
        """Put it on the stream."""


class Device(Protocol):
    """One GPU and one stream; everything on it happens in the order it was asked for."""

    @property
    def facts(self) -> DeviceFacts:
        """Which GPU it is."""

    @property
    def stream(self) -> int:
        """Handle of the stream."""

    def activate(self) -> None:
        """Make it the device of the thread that calls."""

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Memory filled with zeros."""

    def upload(self, array: NDArray[Any], buffer: DeviceBuffer) -> None:
        """Copy a contiguous array to the start of a buffer; the array may be changed afterwards."""

    def download(self, buffer: DeviceBuffer, array: NDArray[Any]) -> None:
        """Fill a contiguous array from the start of a buffer, once all work before is done."""

    def synchronize(self) -> None:
        """Wait until all work is done.

        Raises:
            EngineError: some of it failed.
        """

    def capture(self, work: Callable[[], None]) -> DeviceGraph:
        """Record what `work` puts on the stream, without running it.

        Raises:
            EngineError: it does something that cannot be recorded. The stream is in order again.
        """


def open_device(asked: str) -> Device:
    """A GPU by the name a user gives: `auto`, `cuda`, `cuda:1`.

    Raises:
        EngineError: no such GPU, or no driver.
        MissingPackageError: neither `cuda-bindings` nor torch with CUDA is installed.
    """
    index = _index(asked)
    for opener in OPENERS:
        try:
            return opener(index)
        except ModuleNotFoundError:
            continue
    raise MissingPackageError("cuda.bindings", "tensorrt")


def _index(asked: str) -> int:
    kind, _, number = asked.partition(":")
    if asked == "auto" or (kind == "cuda" and (number.isdecimal() or asked == "cuda")):
        return int(number or 0)
    raise EngineError(f"TensorRT has no device {asked!r}. Choose one of: auto, cuda, cuda:1, ...")


def _no_gpu(index: int, count: int, said: str) -> EngineError:
    if count:
        return EngineError(
            f"there is no GPU {index} here. Choose among: "
            f"{', '.join(f'cuda:{one}' for one in range(count))}."
        )
    return EngineError(
        f"no NVIDIA GPU can be used here ({said}). Check the driver with nvidia-smi, or export "
        "for onnxruntime or openvino."
    )


class _BindingsDevice:
    """By `cuda.bindings.runtime`, whose functions return an error code and then their results."""

    def __init__(self, index: int) -> None:
        self._cuda: Any = importlib.import_module("cuda.bindings.runtime")
        error, count = self._cuda.cudaGetDeviceCount()
        if int(error) or index >= count:
            raise _no_gpu(index, count or 0, self._name(error))
        self._call("cudaSetDevice", index)
        facts = self._call("cudaGetDeviceProperties", index)
        driver = self._call("cudaDriverGetVersion")
        self.facts = DeviceFacts(
            index,
            _text(facts.name),
            f"{facts.major}.{facts.minor}",
            f"{driver // 1000}.{driver % 1000 // 10}",
            bool(facts.integrated),
        )
        self._stream = self._call("cudaStreamCreate")

    @property
    def stream(self) -> int:
        return int(self._stream)

    def activate(self) -> None:
        self._call("cudaSetDevice", self.facts.index)

    def allocate(self, nbytes: int) -> _BindingsBuffer:
        address = int(self._call("cudaMalloc", max(nbytes, 1)))
        buffer = _BindingsBuffer(self._cuda, address, nbytes)
        self._call("cudaMemsetAsync", address, 0, max(nbytes, 1), self._stream)
        return buffer

    def upload(self, array: NDArray[Any], buffer: DeviceBuffer) -> None:
        _check_copy(array, buffer)
        # From memory that is not pinned the call returns once the data are out of it.
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(buffer.address, array.ctypes.data, array.nbytes, kind)

    def download(self, buffer: DeviceBuffer, array: NDArray[Any]) -> None:
        _check_copy(array, buffer)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, buffer.address, array.nbytes, kind)
        self.synchronize()

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> _BindingsGraph:
        # Only this thread's calls are watched: another model may be loading meanwhile.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            # Ends the recording whatever came of it; the first error is the one to tell.
            error, graph = self._cuda.cudaStreamEndCapture(self._stream)
            if not int(error):
                self._cuda.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            ready = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._cuda.cudaGraphDestroy(graph)
        return _BindingsGraph(self._cuda, ready, self._stream)

    def _copy(self, to: int, source: int, nbytes: int, kind: Any) -> None:
        self._call("cudaMemcpyAsync", to, source, nbytes, kind, self._stream)

    def _call(self, name: str, *args: Any) -> Any:
        error, *results = getattr(self._cuda, name)(*args)
        if int(error):
            raise EngineError(
                f"CUDA's {name} failed: {self._name(error)}. Check the free memory of the GPU and "
                "load the bundle again."
            )
        return results[0] if results else None

    def _name(self, error: Any) -> str:
        _, text = self._cuda.cudaGetErrorString(error)
        return _text(text)


class _BindingsBuffer:
    def __init__(self, cuda: Any, address: int, nbytes: int) -> None:
        self._cuda, self.address, self.nbytes = cuda, address, nbytes

    def __del__(self) -> None:
        self._cuda.cudaFree(self.address)  # waits for work that still uses it


class _BindingsGraph:
    def __init__(self, cuda: Any, ready: Any, stream: Any) -> None:
        self._cuda, self._ready, self._stream = cuda, ready, stream

    def launch(self) -> None:
        [error] = self._cuda.cudaGraphLaunch(self._ready, self._stream)
        if int(error):
            raise EngineError(f"a CUDA graph did not start ({error}). Load the bundle again.")

    def __del__(self) -> None:
        self._cuda.cudaGraphExecDestroy(self._ready)


class _TorchDevice:
    """By torch, where it is installed with CUDA."""

    def __init__(self, index: int) -> None:
        self._torch: Any = importlib.import_module("torch")
        if self._torch.version.cuda is None:
            raise ModuleNotFoundError("this torch is built without CUDA", name="torch")
        cuda = self._torch.cuda
        count = cuda.device_count() if cuda.is_available() else 0
        if index >= count:
            raise _no_gpu(index, count, "torch sees none")
        self._device = self._torch.device("cuda", index)
        facts = cuda.get_device_properties(index)
        driver = self._torch._C._cuda_getDriverVersion()
        self.facts = DeviceFacts(
            index,
            facts.name,
            f"{facts.major}.{facts.minor}",
            f"{driver // 1000}.{driver % 1000 // 10}",
            bool(facts.is_integrated),
        )
        cuda.set_device(index)
        self._stream = cuda.Stream(self._device)

    @property
    def stream(self) -> int:
        return int(self._stream.cuda_stream)

    def activate(self) -> None:
        self._torch.cuda.set_device(self._device)

    def allocate(self, nbytes: int) -> _TorchBuffer:
        with self._torch.cuda.stream(self._stream):
            memory = self._torch.zeros(max(nbytes, 1), dtype=self._torch.uint8, device=self._device)
        return _TorchBuffer(memory, nbytes)

    def upload(self, array: NDArray[Any], buffer: DeviceBuffer) -> None:
        _check_copy(array, buffer)
        self._copy(buffer, array, to_device=True)

    def download(self, buffer: DeviceBuffer, array: NDArray[Any]) -> None:
        _check_copy(array, buffer)
        self._copy(buffer, array, to_device=False)
        self.synchronize()

    def synchronize(self) -> None:
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> _TorchGraph:
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return _TorchGraph(self._torch, graph, self._stream)

    def _copy(self, buffer: DeviceBuffer, array: NDArray[Any], *, to_device: bool) -> None:
        memory = buffer._memory[: array.nbytes]  # type: ignore[attr-defined]  # ours
        host = self._torch.from_numpy(array.reshape(-1).view(np.uint8))
        with self._torch.cuda.stream(self._stream):
            if to_device:
                memory.copy_(host)
            else:
                host.copy_(memory)


class _TorchBuffer:
    def __init__(self, memory: Any, nbytes: int) -> None:
        self._memory, self.nbytes = memory, nbytes
        self.address: int = memory.data_ptr()


class _TorchGraph:
    def __init__(self, torch: Any, graph: Any, stream: Any) -> None:
        self._torch, self._graph, self._stream = torch, graph, stream

    def launch(self) -> None:
        with self._torch.cuda.stream(self._stream):
            self._graph.replay()


OPENERS: tuple[Callable[[int], Device], ...] = (_BindingsDevice, _TorchDevice)
"""Ways to a GPU, the first one installed is taken."""


def _text(value: object) -> str:
    return value.decode().rstrip("\0") if isinstance(value, bytes) else str(value)


def _check_copy(array: NDArray[Any], buffer: DeviceBuffer) -> None:
    if not array.flags.c_contiguous or array.nbytes > buffer.nbytes:
        raise EngineError(
            f"{array.nbytes} bytes cannot be copied to or from {buffer.nbytes} on the device. "
            "Report this as a defect."
        )


def why_no_device() -> str | None:
    """None where a GPU can be used, or else why not."""
    try:
        open_device("auto")
    except LacoError as error:
        return str(error)
    return None


__all__ = [
    "OPENERS",
    "Device",
    "DeviceBuffer",
    "DeviceFacts",
    "DeviceGraph",
    "open_device",
    "why_no_device",
]
