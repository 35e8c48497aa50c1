"""A GPU of host memory, and a TensorRT that keeps the real one's rules and computes by a callback.

What the real one answers with undefined behaviour, this one answers with an AssertionError.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laco_runtimes.engines.tensorrt_device import DeviceBuffer, DeviceFacts
from laco_runtimes.errors import EngineError
from laco_runtimes.graphs import GraphSpec, TensorSpec

Arrays = dict[str, NDArray[Any]]
Compute = Callable[[Arrays], Arrays]

STREAM = 7
NUMPY = {
    "float32": np.float32,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "bool": np.bool_,
}


class FakeBuffer:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.memory = np.zeros(max(nbytes, 1), np.uint8)

    @property
    def address(self) -> int:
        return self.memory.ctypes.data


@dataclass
class FakeGraph:
    device: FakeDevice
    runs: list[Callable[[], None]]

    def launch(self) -> None:
        self.device.events.append("launch")
        for run in self.runs:
            run()


@dataclass
class FakeDevice:
    facts: DeviceFacts = field(default_factory=lambda: DeviceFacts(0, "Fake GPU", "8.9", "13.0"))
    stream: int = STREAM
    events: list[str] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None
    refuses_capture: bool = False

    def activate(self) -> None:
        """There is but one."""

    def allocate(self, nbytes: int) -> FakeBuffer:
        return FakeBuffer(nbytes)

    def upload(self, array: NDArray[Any], buffer: DeviceBuffer) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= buffer.nbytes
        assert self.recording is None, "a copy from memory that changes cannot be recorded"
        ctypes.memmove(buffer.address, array.ctypes.data, array.nbytes)

    def download(self, buffer: DeviceBuffer, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= buffer.nbytes
        ctypes.memmove(array.ctypes.data, buffer.address, array.nbytes)

    def synchronize(self) -> None:
        """All is done at once here."""

    def capture(self, work: Callable[[], None]) -> FakeGraph:
        if self.refuses_capture:
            raise EngineError("it cannot be recorded. Never mind.")
        self.recording = []
        try:
            work()
            runs = self.recording
        finally:
            self.recording = None
        self.events.append("capture")
        return FakeGraph(self, runs)


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    BF16 = 2
    INT32 = 3
    INT64 = 4
    BOOL = 5


TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "bfloat16": DataType.BF16,
    "int32": DataType.INT32,
    "int64": DataType.INT64,
    "bool": DataType.BOOL,
}


@dataclass
class FakePlan:
    """What deserialising some bytes gives."""

    spec: GraphSpec
    compute: Compute
    aliases: Mapping[str, str] = field(default_factory=dict)
    profiles: int = 1


@dataclass
class FakeTrt:
    """The namespace: its plans by their bytes, and every call that matters in order."""

    device: FakeDevice
    plans: dict[bytes, FakePlan] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    capturable: bool = True

    __version__ = "0.0-fake"
    TensorIOMode = TensorIOMode

    class ILogger:
        def __init__(self) -> None:
            pass

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self)


class FakeRuntime:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt
        self.engine_host_code_allowed = True

    def deserialize_cuda_engine(self, data: bytes) -> FakeCudaEngine | None:
        assert not self.engine_host_code_allowed
        self._trt.calls.append(("deserialize",))
        plan = self._trt.plans.get(bytes(data))
        return FakeCudaEngine(self._trt, plan) if plan else None


class FakeCudaEngine:
    def __init__(self, trt: FakeTrt, plan: FakePlan) -> None:
        self._trt, self._plan = trt, plan
        self._tensors = {one.name: one for one in (*plan.spec.inputs, *plan.spec.outputs)}
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = plan.profiles

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        inputs = {one.name for one in self._plan.spec.inputs}
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return TYPES[self._tensors[name].dtype]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._plan.aliases.get(name)

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self._trt, self._plan)


class FakeContext:
    def __init__(self, trt: FakeTrt, plan: FakePlan) -> None:
        self._trt, self._plan, self._device = trt, plan, trt.device
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inferred = False
        self._runs = 0

    def _note(self, *call: object) -> None:
        self._trt.calls.append((self._plan.spec.name, *map(str, call)))

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        self._note("profile", profile_index)
        self._profile = profile_index
        return profile_index < self._plan.profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "the profile comes first"
        self._note("shape", name, shape)
        spec = next(one for one in self._plan.spec.inputs if one.name == name)
        fits = len(shape) == len(spec.dims) and all(
            isinstance(dim, str) or dim == size for dim, size in zip(spec.dims, shape, strict=True)
        )
        if fits:
            self._shapes[name] = shape
            self._inferred = False
        return fits

    def infer_shapes(self) -> list[str]:
        missing = [one.name for one in self._plan.spec.inputs if self._shape(one) is None]
        self._note("infer", missing)
        self._inferred = not missing
        return missing

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert self._inferred, "addresses come after the shapes"
        self._note("address", name)
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        assert self._inferred, "shapes were changed and not inferred"
        names = [one.name for one in (*self._plan.spec.inputs, *self._plan.spec.outputs)]
        assert sorted(self._addresses) == sorted(names), "a tensor has no address"
        for output, source in self._plan.aliases.items():
            assert self._addresses[output] == self._addresses[source]
        self._note("execute")
        run = self._bound_run(dict(self._shapes), dict(self._addresses))
        if self._device.recording is not None:
            assert self._runs, "kernels are loaded by the first run, which cannot be recorded"
            self._device.recording.append(run)
            return True
        self._runs += 1
        run()
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._trt.capturable

    def _shape(self, one: TensorSpec) -> tuple[int, ...] | None:
        if all(isinstance(dim, int) for dim in one.dims):
            return tuple(int(dim) for dim in one.dims)
        return self._shapes.get(one.name)

    def _bound_run(
        self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]
    ) -> Callable[[], None]:
        """As a graph has it: shapes and addresses of now, whatever is set later."""
        static = {one.name: self._shape(one) for one in self._plan.spec.inputs}

        def run() -> None:
            inputs = {}
            for one in self._plan.spec.inputs:
                shape = shapes.get(one.name) or static[one.name]
                assert shape is not None
                inputs[one.name] = _read(addresses[one.name], NUMPY[one.dtype], shape)
            outputs = self._plan.compute(inputs)
            for one in self._plan.spec.outputs:
                array = np.ascontiguousarray(outputs[one.name], NUMPY[one.dtype])
                ctypes.memmove(addresses[one.name], array.ctypes.data, array.nbytes)

        return run


def _read(address: int, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    count = int(np.prod(shape))
    array = np.empty(count, dtype)
    ctypes.memmove(array.ctypes.data, address, array.nbytes)
    return array.reshape(shape)
