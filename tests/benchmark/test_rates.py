"""What the machine can do: the arithmetic on a fake clock, and the real products of the engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from laco_deploy.benchmark import products, rates
from laco_deploy.benchmark.products import OPERATIONS, PRODUCTS, Run, onnx_product
from laco_deploy.benchmark.rates import (
    LARGEST_ARRAY,
    LEAST_ARRAY,
    array_bytes,
    best_ns,
    last_cache_bytes,
    measure_rates,
)

MS = 1_000_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and arrays that take no time."""
    for name in ("ROWS", "INNER", "COLUMNS"):
        monkeypatch.setattr(products, name, 8)
    monkeypatch.setattr(rates, "LARGEST_ARRAY", 2**16)


class FakeClock:
    """Runs take the times given, in turn, and then the last one."""

    def __init__(self, *costs_ms: int) -> None:
        self.now, self.costs = 0, list(costs_ms)

    def __call__(self) -> int:
        return self.now

    def run(self) -> None:
        self.now += MS * (self.costs.pop(0) if len(self.costs) > 1 else self.costs[0])


def test_the_best_run_counts_but_not_the_first() -> None:
    clock = FakeClock(1, 9, 7, 8)
    assert best_ns(clock.run, 0.05, clock) == 7 * MS
    assert clock.now >= 50 * MS


def test_a_slow_run_is_repeated_all_the_same() -> None:
    clock = FakeClock(5000, 4000, 3000, 6000)
    assert best_ns(clock.run, 0.05, clock) == 3000 * MS


def test_the_rate_is_operations_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(2)

    def fake(device: str, threads: int | None) -> Mapping[str, Run]:
        assert (device, threads) == ("GPU", 3)
        return {"fp32": clock.run}

    monkeypatch.setitem(PRODUCTS, "openvino", fake)  # type: ignore[arg-type]
    found = measure_rates("openvino", "GPU", 3, clock=clock)
    assert found.matrix_gflops == {"fp32": pytest.approx(OPERATIONS / 2e-3 / 1e9)}
    assert (found.memory_gb_per_s, found.threads) == (None, 3)
    assert [note for note in found.notes if "GPU may have memory of its own" in note]


def test_an_engine_without_a_measurement_leaves_the_rest(small: None) -> None:
    found = measure_rates("tensorrt", "cpu", 1, seconds=0.0)
    assert found.matrix_gflops == {}
    assert found.memory_gb_per_s is not None
    assert [note for note in found.notes if "tensorrt" in note]


def test_an_engine_that_fails_leaves_the_rest(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str, threads: int | None) -> Mapping[str, Run]:
        raise RuntimeError("no kernel")

    monkeypatch.setitem(PRODUCTS, "onnxruntime", broken)  # type: ignore[arg-type]
    found = measure_rates("onnxruntime", "cpu", 1, seconds=0.0)
    assert found.matrix_gflops == {}
    assert found.memory_gb_per_s is not None
    assert [note for note in found.notes if "no kernel" in note]


@pytest.mark.parametrize(("target", "device"), [("onnxruntime", "cpu"), ("openvino", "CPU")])
def test_the_engines_multiply(small: None, target: str, device: str) -> None:
    found = measure_rates(target, device, 1, seconds=0.0)
    assert found.notes == ()
    assert "fp32" in found.matrix_gflops
    assert found.memory_gb_per_s is not None


def test_the_file_made_by_hand_is_a_product() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    model = onnx.load_from_string(onnx_product(weight))
    onnx.checker.check_model(model, full_check=True)
    x = np.ones((products.ROWS, 3), np.float32)
    [found] = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weight, rtol=1e-6)


def write_caches(folder: Path, **sizes: str) -> Path:
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "size").write_text(f"{size}\n")
    return folder


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    caches = write_caches(tmp_path, index0="48K", index2="2048K", index3="105M")
    assert last_cache_bytes(caches) == 105 * 2**20
    assert array_bytes(caches) == 210 * 2**20


@pytest.mark.parametrize(("size", "expected"), [("1M", LEAST_ARRAY), ("900M", LARGEST_ARRAY)])
def test_arrays_are_neither_tiny_nor_all_of_the_memory(
    tmp_path: Path, size: str, expected: int
) -> None:
    assert array_bytes(write_caches(tmp_path, index3=size)) == expected


def test_a_cache_of_unknown_size_is_taken_for_a_large_one(tmp_path: Path) -> None:
    assert last_cache_bytes(tmp_path / "none") == 32 * 2**20
    assert last_cache_bytes(write_caches(tmp_path, index3="much")) == 32 * 2**20
