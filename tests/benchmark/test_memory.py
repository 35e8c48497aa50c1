"""Peak memory comes from a process of its own, whatever the parent holds."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from laco_deploy.benchmark import memory
from laco_deploy.benchmark.memory import peak_memory, peak_resident_bytes
from laco_deploy.benchmark.request import Workload
from laco_runtimes.bundle import open_bundle

BALLAST_BYTES = 600_000_000


@pytest.fixture
def workload(photo: Path) -> Workload:
    return Workload(photo.read_bytes(), "What is it?", new_tokens=2, device="auto", threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak may not be told")
@pytest.mark.parametrize("bundle", [("laco",)], indirect=True)
def test_memory_of_the_parent_is_not_counted(bundle: Path, workload: Workload) -> None:
    ballast = np.ones(BALLAST_BYTES, np.uint8)
    own = peak_resident_bytes()
    assert own is not None
    assert own > BALLAST_BYTES
    opened = open_bundle(bundle)
    found, reason = peak_memory(opened, opened.variant("laco"), workload)
    assert reason is None
    assert found is not None
    assert 20_000_000 < found < ballast.nbytes


@pytest.mark.parametrize("bundle", [("laco",)], indirect=True)
def test_engine_that_refuses_leaves_a_reason(bundle: Path, workload: Workload) -> None:
    opened = open_bundle(bundle)
    found, reason = peak_memory(opened, opened.variant("laco"), replace(workload, device="toaster"))
    assert found is None
    assert reason is not None
    assert "toaster" in reason


@pytest.mark.parametrize("bundle", [("laco",)], indirect=True)
def test_process_that_dies_leaves_a_reason(
    bundle: Path, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_child", os._exit)  # with these arguments, a TypeError
    opened = open_bundle(bundle)
    found, reason = peak_memory(opened, opened.variant("laco"), workload)
    assert found is None
    assert reason == "the process that was to measure it ended with code 1"
