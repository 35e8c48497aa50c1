"""A plan on the device: bound tensor by tensor, run, and replayed as a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from laco_runtimes.engines.base import check_names
from laco_runtimes.engines.tensorrt_device import Device, DeviceBuffer, DeviceGraph
from laco_runtimes.errors import EngineError
from laco_runtimes.graphs import GraphSpec
from laco_runtimes.plan_builder import BuildLog
from laco_runtimes.plan_products import Namespace

if TYPE_CHECKING:
    import tensorrt_rtx

logger = logging.getLogger("laco")

DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
"""Types of a `GraphSpec` as TensorRT calls them."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a tensor lies, and its shape in this run."""

    buffer: DeviceBuffer
    shape: tuple[int, ...]


class LoadedPlan:
    """A plan that was read, with the inputs and outputs its graph is declared to have.

    Args:
        trt: the product's package.
        device: where it runs.
        data: the plan. It is native code: from the private cache, never from a bundle.
        spec: what it was built from.

    Raises:
        EngineError: the product refuses the plan, or its inputs and outputs are others.
    """

    def __init__(self, trt: Namespace, device: Device, data: bytes, spec: GraphSpec) -> None:
        self.device, self.spec = device, spec
        self.log = BuildLog(trt)
        # The runtime must outlive its engine.
        self._runtime = trt.Runtime(self.log.logger)
        self._runtime.engine_host_code_allowed = False
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(
                f"the plan of {spec.name} was refused on {device.facts.name}: "
                f"{self.log.complaint()}. Check that this GPU and driver are supported."
            )
        self.engine = engine
        self._check(trt)

    def _check(self, trt: Namespace) -> None:
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        check_names(
            self.spec,
            [name for name in names if modes[name] == trt.TensorIOMode.INPUT],
            [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT],
        )
        for one in (*self.spec.inputs, *self.spec.outputs):
            if (found := self.engine.get_tensor_dtype(one.name).name) != DTYPES[one.dtype]:
                raise EngineError(
                    f"{one.name} of {self.spec.name} is {one.dtype} by its declaration and {found} "
                    "in the plan. Export the model again."
                )

    def aliases(self) -> dict[str, str]:
        """Outputs that must lie where an input lies, by name."""
        known = getattr(self.engine, "get_aliased_input_tensor", None)  # from 10.15 on
        found = {one.name: known(one.name) if known else None for one in self.spec.outputs}
        return {output: source for output, source in found.items() if source}


class Execution:
    """One plan with one profile: bind, then enqueue as often as wanted."""

    def __init__(self, plan: LoadedPlan, profile: int = 0) -> None:
        self._plan, self._device = plan, plan.device
        context = plan.engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"{plan.spec.name} does not start: {plan.log.complaint()}. "
                "Check the free memory of the GPU."
            )
        self._context = context
        self._checked(
            context.set_optimization_profile_async(profile, self._device.stream),
            f"profile {profile}",
        )
        self._dynamic = {
            one.name for one in plan.spec.inputs if any(isinstance(dim, str) for dim in one.dims)
        }
        self._names = [one.name for one in (*plan.spec.inputs, *plan.spec.outputs)]
        self._aliases = plan.aliases()
        self.bound: Hashable = None
        """Addresses and shapes in force; work recorded under others must be recorded anew."""

    def bind(self, bindings: Mapping[str, Binding]) -> None:
        """Say where every input and output lies; shapes count for inputs alone.

        Raises:
            EngineError: a tensor without a place, a shape outside the profile, or an output that
                is not where its input is although the plan writes it in place.
        """
        if lost := [name for name in self._names if name not in bindings]:
            raise EngineError(f"{lost[0]} of {self._plan.spec.name} has no memory. Load it again.")
        wanted = tuple(
            (name, bindings[name].buffer.address, bindings[name].shape) for name in self._names
        )
        if wanted == self.bound:
            return
        self.bound = None
        for output, source in self._aliases.items():
            if bindings[output].buffer.address != bindings[source].buffer.address:
                raise EngineError(
                    f"{output} must lie where {source} lies: the cache is written in place. "
                    "Report this as a defect."
                )
        for name in self._names:
            if name in self._dynamic:
                shape = bindings[name].shape
                self._checked(self._context.set_input_shape(name, shape), f"{name} of {shape}")
        if missing := self._context.infer_shapes():
            raise EngineError(
                f"{self._plan.spec.name} still has no shape for {missing[0]}. "
                "Report this as a defect."
            )
        for name in self._names:
            address = bindings[name].buffer.address
            self._checked(self._context.set_tensor_address(name, address), f"memory of {name}")
        self.bound = wanted

    def enqueue(self) -> None:
        """Put one run on the stream."""
        self._checked(self._context.execute_async_v3(self._device.stream), "a run")

    def can_be_recorded(self) -> bool:
        """Whether the product has chosen its kernels, which it does not while it is recorded."""
        if not hasattr(self._context, "is_stream_capturable"):
            return True
        context = cast("tensorrt_rtx.IExecutionContext", self._context)
        return context.is_stream_capturable(self._device.stream)

    def _checked(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise EngineError(
                f"{self._plan.spec.name} refused {what}: {self._plan.log.complaint()}. "
                "Use a shorter prompt or fewer images, or export the model again."
            )


class Replay:
    """Work that is done again and again: enqueued at first, replayed as one CUDA graph after.

    A graph holds addresses and shapes as they were. `run` is told them by a key; the work is
    enqueued the first time under a key (kernels are loaded then), recorded the second time.

    Args:
        device: records and replays.
        work: puts the work on the stream.
        ready: whether it can be recorded by now.
    """

    def __init__(self, device: Device, work: Callable[[], None], ready: Callable[[], bool]) -> None:
        self._device, self._work, self._ready = device, work, ready
        self._key: Hashable = None
        self._graph: DeviceGraph | None = None
        self._refused = False

    def run(self, key: Hashable) -> None:
        """Do the work once.

        Raises:
            EngineError: it failed. What was recorded is forgotten.
        """
        try:
            if key is None or key != self._key:
                self._forget()
                self._work()
                self._key = key
                return
            if self._graph is None and not self._refused and self._ready():
                self._graph = self._recorded()
            if self._graph is not None:
                self._graph.launch()
            else:
                self._work()
        except BaseException:
            self._forget()
            raise

    def _recorded(self) -> DeviceGraph | None:
        try:
            return self._device.capture(self._work)
        except Exception as error:  # torch raises its own kinds
            logger.info("no CUDA graph, each step is enqueued instead: %s", error)
            self._refused = True
            return None

    def _forget(self) -> None:
        self._key, self._graph, self._refused = None, None, False


__all__ = ["DTYPES", "Binding", "Execution", "LoadedPlan", "Replay"]
