"""Memory, load and cold start come from a process of its own, whatever the parent holds."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from laco_deploy.benchmark import fresh
from laco_deploy.benchmark.fresh import fresh_start
from laco_deploy.benchmark.memory import device_memory, peak_resident_bytes
from laco_deploy.benchmark.request import Workload

BALLAST_BYTES = 600_000_000


@pytest.fixture
def workload(photo: Path) -> Workload:
    return Workload(photo.read_bytes(), "What is it?", new_tokens=(2,), device="auto", threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak may not be told")
@pytest.mark.parametrize("bundle", [("laco",)], indirect=True)
def test_memory_of_the_parent_is_not_counted(bundle: Path, workload: Workload) -> None:
    ballast = np.ones(BALLAST_BYTES, np.uint8)
    own = peak_resident_bytes()
    assert own is not None
    assert own > BALLAST_BYTES
    found = fresh_start(bundle, "laco", workload, "cpu")
    assert found.note is None
    assert found.peak_bytes is not None
    assert 20_000_000 < found.peak_bytes < ballast.nbytes
    assert found.load_ms is not None
    assert found.cold_start_ms is not None
    assert found.cold_start_ms > found.load_ms > 0
    assert found.device_bytes is None
    assert found.device_note == "only an NVIDIA GPU's memory can be told, and this ran on cpu"


@pytest.mark.parametrize("bundle", [("laco",)], indirect=True)
def test_engine_that_refuses_leaves_a_reason(bundle: Path, workload: Workload) -> None:
    found = fresh_start(bundle, "laco", replace(workload, device="toaster"), "cpu")
    assert (found.load_ms, found.cold_start_ms, found.peak_bytes) == (None, None, None)
    assert found.note is not None
    assert "toaster" in found.note


@pytest.mark.parametrize("bundle", [("laco",)], indirect=True)
def test_process_that_dies_leaves_a_reason(
    bundle: Path, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "_child", os._exit)  # with these arguments, a TypeError
    found = fresh_start(bundle, "laco", workload, "cpu")
    assert found.peak_bytes is None
    assert found.note == "the process that was to measure it ended with code 1"


class FakeNvml(SimpleNamespace):
    used = 1000

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=self.used)


def test_memory_of_the_gpu_is_what_came_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    samples = iter([1000, 1000, 5000])
    monkeypatch.setattr("laco_deploy.benchmark.sampler.SECONDS", 0.0)

    def info(handle: int) -> SimpleNamespace:
        fake.used = next(samples, fake.used)
        return SimpleNamespace(used=fake.used)

    fake.nvmlDeviceGetMemoryInfo = info
    with device_memory("cuda:0 (Some GPU)") as found:
        while fake.used != 5000:
            pass
    assert found.peak_bytes == 4000
    assert found.note is None


def test_gpu_that_cannot_be_watched_leaves_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with device_memory("cuda:0", "no_such_nvml") as found:
        pass
    assert found.note == "the package nvidia-ml-py is not installed"

    def refuse() -> None:
        raise RuntimeError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=refuse))
    with device_memory("cuda:0") as found:
        pass
    assert (found.peak_bytes, found.note) == (None, "NVML refused: driver not loaded")
