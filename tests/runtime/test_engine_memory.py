"""What engines say when memory ends becomes one kind of error, and they can be used again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import ENGINES, load_engine, onnxruntime_cache
from laco_runtimes.engines.base import EngineType, LoadedEngine, LoadRequest, engine_errors
from laco_runtimes.errors import ArgumentError, EngineError, OutOfMemoryError

MEMORY = (
    # OpenVINO: CPU plugin (2026.4, seen), GPU plugin, NPU.
    "Check 'ptr' failed at src/plugins/intel_cpu/src/cpu_memory.cpp:257:\nFailed to allocate "
    "225792000 bytes of memory",
    "std::bad_alloc",
    "bad allocation",
    "Exception from src/plugins/intel_gpu/src/runtime/ocl/ocl_engine.cpp:185:\n"
    "[GPU] out of GPU resources",
    "Check '!exceed_allocatable_mem_size' failed at ocl_engine.cpp:115:\n[GPU] Exceeded max size "
    "of memory object allocation: requested 4831838208 bytes, but max alloc size is 1073741824",
    "[GPU] CL_OUT_OF_RESOURCES exception",
    "clCreateBuffer, error code: -4 CL_MEM_OBJECT_ALLOCATION_FAILURE",
    "L0 zeCommandQueueExecuteCommandLists result: ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    # ONNX Runtime: 1.31 on a CPU (seen), an arena at its limit, CUDA.
    "bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, "
    "onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 98304000",
    "Available memory of 1048576 is smaller than requested bytes of 98304000",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; expr=cudaMalloc((void**)&p, size);",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    # CUDA and TensorRT.
    "cudaMalloc failed: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    "[virtualMemoryBuffer.cpp::resizePhysical::160] Error Code 2: OutOfMemory (no further "
    "information)",
    "Requested amount of GPU memory (4294967296 bytes) could not be allocated.",
    "Skipping tactic 3 due to insufficient memory on requested size of 4294967296",
    "Tactic Device request: 2304MB Available: 1536MB. Device memory is insufficient to use tactic.",
    # torch, CUDA and CPU.
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8.00 GiB",
    "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 400000000 bytes.",
    # numpy
    "Unable to allocate 3.64 TiB for an array with shape (1000000, 1000000) and data type float32",
)

OTHER = (
    "Got invalid dimensions for input: inputs_embeds",
    "CUDA failure 700: an illegal memory access was encountered",
    "the plan was refused. Check the free memory of the GPU",
    "memory layout of input is not contiguous",
    "Load model from decoder.onnx failed: Protobuf parsing failed",
)


@pytest.mark.parametrize("said", MEMORY)
def test_messages_about_memory_are_errors_of_memory(said: str) -> None:
    with (
        pytest.raises(
            OutOfMemoryError, match=r"^decoding failed: .*\. Close programs\.$"
        ) as caught,
        engine_errors("decoding", "Close programs."),
    ):
        raise RuntimeError(said)
    assert isinstance(caught.value, EngineError)
    assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("said", OTHER)
def test_other_messages_are_not(said: str) -> None:
    with pytest.raises(EngineError) as caught, engine_errors("decoding", "Check the free memory."):
        raise RuntimeError(said)
    assert type(caught.value) is EngineError


def test_a_memory_error_without_words_says_what_was_under_way() -> None:
    with (
        pytest.raises(OutOfMemoryError, match=r"^decoding failed: MemoryError\. Wait\.$"),
        engine_errors("decoding", "Wait."),
    ):
        raise MemoryError


def test_what_an_engine_says_in_an_error_of_ours_is_read_too() -> None:
    with (
        pytest.raises(OutOfMemoryError, match=r"^decoder does not start: out of memory\. Wait\.$"),
        engine_errors("decoding", "Retry."),
    ):
        raise EngineError("decoder does not start: out of memory. Wait.")


def test_errors_of_other_kinds_stay_as_they_are() -> None:
    with pytest.raises(ArgumentError), engine_errors("decoding", "Retry."):
        raise ArgumentError("out of memory is no device. Choose one of: auto.")


def test_no_memory_for_a_model_is_an_error_of_memory(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(request: LoadRequest) -> LoadedEngine:
        raise MemoryError("Unable to allocate 9 GiB for an array")

    monkeypatch.setitem(ENGINES, "fake", EngineType("fake", "numpy", "none", load))
    opened = open_bundle(bundle)
    with pytest.raises(OutOfMemoryError, match="loading the model with fake failed: Unable"):
        load_engine(LoadRequest(opened.root, opened.manifest, opened.variant("laco"), "auto"))


ONE_ARENA = {**os.environ, "MALLOC_ARENA_MAX": "1"}
"""Of several, glibc keeps those of threads that are gone, with address space beyond any limit."""

STARVED = """
import resource, sys
import numpy as np
from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadRequest
from laco_runtimes.errors import OutOfMemoryError

bundle = open_bundle(sys.argv[1])
request = LoadRequest(bundle.root, bundle.manifest, bundle.variant("laco"), "cpu", threads=1)
engine = load_engine(request)
side = bundle.manifest.preprocessing.image_size
one, many = (np.full((n, 3, side, side), 0.5, np.float32) for n in (1, 6000))
features = engine.vision.encode(one)
logits = engine.language.prefill(engine.language.embed([5, 6, 7]))

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**22, limits[1]))
try:
    engine.vision.encode(many)
except OutOfMemoryError as error:
    print(error)
finally:
    resource.setrlimit(resource.RLIMIT_AS, limits)
engine.language.rewind(0)
again = engine.language.prefill(engine.language.embed([5, 6, 7]))
print(np.array_equal(engine.vision.encode(one), features), np.array_equal(again, logits))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_engine_that_ran_out_of_memory_can_be_used_again(
    name: str, bundle_for: Callable[[str], Path]
) -> None:
    pytest.importorskip(ENGINES[name].package)
    command = [sys.executable, "-c", STARVED, str(bundle_for(name))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=ONE_ARENA
    )
    said, same = done.stdout.splitlines()
    assert "encoding the image with" in said
    assert "allocate" in said
    assert same == "True True"


STARVED_PROMPT = """
import resource, sys
import numpy as np
from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import load_engine, openvino
from laco_runtimes.engines.base import LoadRequest
from laco_runtimes.errors import OutOfMemoryError

if "state" in sys.argv[2]:
    openvino.page_attention = lambda model, layers: None
bundle = open_bundle(sys.argv[1])
request = LoadRequest(bundle.root, bundle.manifest, bundle.variant("laco"), "cpu", threads=1)
language = load_engine(request).language
long = language.embed([7 * place % 300 for place in range(bundle.manifest.language.max_positions)])
language.prefill(long[:20])
language.rewind(0)

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 2**16, limits[1]))
try:
    language.prefill(long)
except OutOfMemoryError as error:
    print(error)
finally:
    resource.setrlimit(resource.RLIMIT_AS, limits)
language.rewind(0)
found = language.prefill(long)  # as long as the one that failed
other = load_engine(request).language
print(np.abs(found - other.prefill(long)).max() < 1e-4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "openvino with state"])
def test_a_prompt_for_which_there_was_no_memory_can_be_asked_again(
    name: str, bundle_for: Callable[[str], Path]
) -> None:
    target = name.partition(" ")[0]
    pytest.importorskip(ENGINES[target].package)
    command = [sys.executable, "-c", STARVED_PROMPT, str(bundle_for(target)), name]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=ONE_ARENA
    )
    said, same = done.stdout.splitlines()
    assert "decoding with" in said
    assert same == "True"


def test_a_cache_that_cannot_grow_is_as_it_was(
    bundle_for: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    opened = open_bundle(bundle_for("onnxruntime"))
    variant = opened.variant("laco")
    language = load_engine(LoadRequest(opened.root, opened.manifest, variant, "cpu")).language
    monkeypatch.setattr(onnxruntime_cache, "FIRST_CAPACITY", 4)
    language.prefill(language.embed([5, 6, 7]))
    expected = language.step(8)

    zeros, made = np.zeros, 0

    def scarce(shape: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal made
        if isinstance(shape, list) and len(shape) == 4:  # a buffer of the cache
            made += 1
            if made == 3:
                raise MemoryError
        return zeros(shape, *args, **kwargs)

    language.rewind(3)
    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", scarce)
        with pytest.raises(OutOfMemoryError, match="decoding with ONNX Runtime failed"):
            language.prefill(language.embed([8, 9, 10, 11]))
    assert made == 3
    assert language.length == 3
    assert np.array_equal(language.step(8), expected)
    language.rewind(3)
    language.prefill(language.embed([8, 9, 10, 11]))
    assert language.length == 7
