"""ONNX to a TensorRT plan, with either product; needs nothing but its package.

The network is strongly typed: what types the graph says are what runs. Used by the export, to prove
that a graph builds, and by the engine, which builds on the device (`laco_runtimes.plans`).
Names as in NVIDIA's Python API reference, TensorRT 10.3 to 11.4 and TensorRT-RTX 1.7.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from laco_runtimes.bundle import write_atomic
from laco_runtimes.errors import EngineError
from laco_runtimes.graphs import GraphSpec
from laco_runtimes.plan_products import Namespace, Product, import_product

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

DimRange = tuple[int, int, int]
"""Smallest, usual and largest size of a dynamic dimension."""

Progress = Callable[[str, int, int], bool]
"""Told of each phase of a build, how many steps of how many are done; False ends the build."""


@dataclass(frozen=True, slots=True)
class InputRange:
    """Shapes of one input that a profile covers."""

    name: str
    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    def __post_init__(self) -> None:
        triples = zip(self.smallest, self.usual, self.largest, strict=True)
        if not all(0 <= low <= usual <= high for low, usual, high in triples):
            raise EngineError(
                f"the range of input {self.name!r} goes from {self.smallest} over {self.usual} to "
                f"{self.largest}. Give sizes that do not fall."
            )


Profile = tuple[InputRange, ...]
"""One set of shapes that kernels are chosen for."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How a plan is built."""

    profiles: tuple[Profile, ...]
    optimization_level: int | None = None
    """0 (first kernel that works) to 5; None is the product's own default, 3."""
    workspace_bytes: int | None = None
    """Limit of the scratch memory kernels may ask for; None leaves it to the GPU's size."""
    compute_capabilities: tuple[str, ...] = ()
    """RTX: GPUs to build for, names such as `SM89` or `CURRENT`; none builds for all it knows."""
    timing_cache: Path | None = None
    """Enterprise: file that keeps the times of kernels from build to build."""


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A plan and what its builder said about it."""

    data: bytes = field(repr=False)
    seconds: float
    scratch_bytes: int | None
    """Largest scratch memory of a kernel; attention that is not fused shows here."""
    activation_bytes: int | None
    weight_bytes: int | None
    warnings: tuple[str, ...]


def make_profile(spec: GraphSpec, sizes: Mapping[str, DimRange]) -> Profile:
    """Ranges of every input of a graph that has a dynamic dimension.

    Args:
        spec: the graph.
        sizes: range of each dynamic dimension, by its name.

    Raises:
        EngineError: a dimension without a range, or a range that falls.
    """
    ranges = []
    for one in spec.inputs:
        if lost := [dim for dim in one.dims if isinstance(dim, str) and dim not in sizes]:
            raise EngineError(
                f"no range is given for dimension {lost[0]!r} of input {one.name!r}. "
                "Report this as a defect."
            )
        if any(isinstance(dim, str) for dim in one.dims):
            shapes = [
                tuple(dim if isinstance(dim, int) else sizes[dim][end] for dim in one.dims)
                for end in range(3)
            ]
            ranges.append(InputRange(one.name, *shapes))
    return tuple(ranges)


def build_plan(
    product: Product, onnx: Path, settings: BuildSettings, progress: Progress | None = None
) -> BuiltPlan:
    """Parse an ONNX file and build a plan of it.

    Args:
        product: which package builds.
        onnx: read from its path, so that its external data is found beside it.
        settings: shapes and limits.
        progress: told of every phase.

    Raises:
        MissingPackageError: the product's package is not installed.
        EngineError: an operator the parser does not take (named with its node), an input it leaves
            out, a shape that no profile covers, a graph that no kernel runs, or a build that was
            ended by `progress`.
    """
    trt = import_product(product)
    log = BuildLog(trt)
    start = time.perf_counter()
    builder = _made(trt.Builder(log.logger), product, log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log.logger)
    _parse(parser, product, onnx, log)
    config = builder.create_builder_config()
    _configure(trt, builder, config, settings)
    _add_profiles(builder, network, config, settings.profiles, onnx)
    if product.portable:
        _set_targets(product, cast("tensorrt_rtx.IBuilderConfig", config), settings)
    cache = settings.timing_cache if product.timing_cache else None
    if cache is not None:
        _read_timing_cache(config, cache)
    ended: list[str] = []
    monitor = None if progress is None else _make_monitor(trt, progress, ended)
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if ended:
        raise EngineError(
            f"the build of '{onnx.name}' was ended in phase {ended[0]!r}. Start it again."
        )
    if plan is None:
        raise EngineError(
            f"{product.title} {trt.__version__} cannot build '{onnx.name}': {log.complaint()}. "
            "Choose another precision (fp16 and bf16 have fused attention), or another target."
        )
    _check_nothing_dropped(product, onnx, log)
    if cache is not None:
        _write_timing_cache(config, cache)
    return BuiltPlan(
        data=bytes(plan),
        seconds=time.perf_counter() - start,
        scratch_bytes=log.figures.get("Max Scratch Memory"),
        activation_bytes=log.figures.get("Total Activation Memory"),
        weight_bytes=log.figures.get("Total Weights Memory"),
        warnings=tuple(log.warnings),
    )


class BuildLog:
    """Keeps what a product says, of its thousands of lines those that matter.

    The product calls `logger` from its own code, so it must outlive every object made with it.
    """

    _FIGURE = re.compile(r"^((?:Max|Total) \w+ Memory): (\d+) bytes")
    _UNUSED = re.compile(r"unused input", re.IGNORECASE)

    def __init__(self, trt: Namespace) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.unused: list[str] = []
        """Inputs that the parser drops: what is computed is then not what the graph says."""
        self.figures: dict[str, int] = {}
        self.logger = _make_logger(trt, self.note)

    def note(self, severity: int, text: str) -> None:
        """Take one line; severities count from 0, internal errors, to 4, verbose."""
        if self._UNUSED.search(text):
            self.unused.append(text)
        elif severity <= 1:
            self.errors.append(text)
        elif severity == 2:
            self.warnings.append(text)
        elif found := self._FIGURE.match(text):
            # One line for each profile.
            self.figures[found[1]] = max(int(found[2]), self.figures.get(found[1], 0))

    def complaint(self) -> str:
        """The first error in one line, without the part that only the maker can read."""
        text = next(iter(self.errors), "it gave no reason")
        text = " ".join(text.split()).partition(" (See http")[0]
        return re.sub(r"^.*?MyelinCheckException: \S+ ", "", text)[:400].rstrip(".")


def _make_logger(trt: Namespace, note: Callable[[int, str], None]) -> tensorrt.ILogger:
    base = trt.ILogger

    class Logger(base):  # type: ignore[misc, valid-type]  # known only once a product is imported
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            note(int(severity), msg)

    return Logger()


def _make_monitor(
    trt: Namespace, progress: Progress, ended: list[str]
) -> tensorrt.IProgressMonitor:
    base = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            done = step + 1  # steps count from 0
            wanted = progress(phase_name, done, self.steps.get(phase_name, done))
            if not wanted:
                ended.append(phase_name)
            return wanted

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _made(builder: tensorrt.Builder, product: Product, log: BuildLog) -> tensorrt.Builder:
    if log.errors:  # TensorRT says so and gives an object that cannot be used
        raise EngineError(
            f"{product.title} cannot build here: {log.complaint()}. "
            "Check that the machine has an NVIDIA GPU and a driver for it."
        )
    return builder


def _network_flags(trt: Namespace) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    # Needed by TensorRT 10; later ones know no other kind of network and may drop the name.
    name = "STRONGLY_TYPED"
    return 1 << int(getattr(flags, name)) if hasattr(flags, name) else 0


def _parse(parser: tensorrt.OnnxParser, product: Product, onnx: Path, log: BuildLog) -> None:
    if not parser.parse_from_file(str(onnx)) or parser.num_errors:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(
            f"{one.node_operator() or 'the file'} (node {one.node_name()!r}): "
            f"{' '.join(one.desc().split())}"
            for one in errors[:3]
        )
        raise EngineError(
            f"{product.title} does not take '{onnx.name}': {said or log.complaint()}. "
            "Export for another target, or with a decoder flavour this version knows "
            "(`concat` for TensorRT 10.3)."
        )


def _check_nothing_dropped(product: Product, onnx: Path, log: BuildLog) -> None:
    """The parser and the builder say so in their log, and go on."""
    if log.unused:
        raise EngineError(
            f"{product.title} leaves something out of '{onnx.name}': {log.unused[0]}. "
            "What it builds would not compute what the graph says; export for another target."
        )


def _configure(
    trt: Namespace,
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    settings: BuildSettings,
) -> None:
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    # Names of layers and kernels stay in the plan, for whoever profiles it.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _add_profiles(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    profiles: tuple[Profile, ...],
    onnx: Path,
) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {one.name: tuple(one.shape) for one in inputs}
    dynamic = {name for name, shape in shapes.items() if -1 in shape}
    for number, profile in enumerate(profiles):
        if wrong := sorted(dynamic ^ {one.name for one in profile}):
            raise EngineError(
                f"profile {number} and the dynamic inputs of '{onnx.name}' differ in {wrong[0]!r}. "
                "Export the model again."
            )
        made = builder.create_optimization_profile()
        for one in profile:
            _check_range(one, shapes[one.name], onnx)
            made.set_shape(one.name, one.smallest, one.usual, one.largest)
        # It returns -1 where it should raise.
        if not made or config.add_optimization_profile(made) != number:
            raise EngineError(
                f"profile {number} does not fit the inputs of '{onnx.name}'. "
                "Export the model again."
            )


def _check_range(one: InputRange, shape: tuple[int, ...], onnx: Path) -> None:
    fits = len(shape) == len(one.largest) and all(
        size in (-1, low) and (size == -1 or low == high)
        for size, low, high in zip(shape, one.smallest, one.largest, strict=True)
    )
    if not fits:
        raise EngineError(
            f"input {one.name!r} of '{onnx.name}' has shape {shape}, and its profile goes from "
            f"{one.smallest} to {one.largest}. Export the model again."
        )


def _set_targets(
    product: Product, config: tensorrt_rtx.IBuilderConfig, settings: BuildSettings
) -> None:
    if not settings.compute_capabilities:
        return
    import tensorrt_rtx

    known = tensorrt_rtx.ComputeCapability.__members__
    config.num_compute_capabilities = len(settings.compute_capabilities)
    for index, name in enumerate(settings.compute_capabilities):
        if name not in known or not config.set_compute_capability(known[name], index):
            names = ", ".join(one for one in known if one != "NONE")
            raise EngineError(
                f"{product.title} {tensorrt_rtx.__version__} cannot build for GPU {name}. "
                f"Choose among: {names}."
            )


def _read_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> None:
    data = path.read_bytes() if path.is_file() else b""
    made = config.create_timing_cache(data)
    # One that is damaged or of another version is not taken; begin a new one then.
    if made is None or not config.set_timing_cache(made, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _write_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, bytes(config.get_timing_cache().serialize()))


__all__ = [
    "BuildLog",
    "BuildSettings",
    "BuiltPlan",
    "DimRange",
    "InputRange",
    "Profile",
    "Progress",
    "build_plan",
    "make_profile",
]
