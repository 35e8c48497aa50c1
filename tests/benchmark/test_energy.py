"""Meters on made-up trees of Linux, and on an NVML that is none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from laco_deploy.benchmark import energy
from laco_deploy.benchmark.energy import (
    Counter,
    Found,
    PowerRail,
    cuda_index,
    find_ina3221,
    find_meters,
    find_nvml,
    find_rapl,
    running,
)

RANGE_UJ = 262_143_328_850


def zone(root: Path, name: str, label: str, energy_uj: int = 5_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def rail(chip: Path, number: int, label: str, millivolts: int, milliamperes: int) -> None:
    chip.mkdir(parents=True, exist_ok=True)
    (chip / "name").write_text("ina3221\n")
    (chip / f"in{number}_label").write_text(f"{label}\n")
    (chip / f"in{number}_input").write_text(f"{millivolts}\n")
    (chip / f"curr{number}_input").write_text(f"{milliamperes}\n")


def test_rapl_counts_packages_and_memory_once(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "dram")
    zone(tmp_path, "intel-rapl:0:2", "uncore")
    zone(tmp_path, "intel-rapl:1", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")  # the same package by another way
    found = find_rapl("CPU", tmp_path)
    assert found.missing is None
    assert {meter.name: meter.counted for meter in found.meters} == {
        "rapl:0 package-0": True,
        "rapl:0:0 core": False,
        "rapl:0:1 dram": True,
        "rapl:0:2 uncore": False,
        "rapl:1 psys": False,
    }


def test_rapl_tells_joules_since_it_was_started(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", energy_uj=5_000_000)
    [meter] = find_rapl("CPU", tmp_path).meters
    with running([meter]):
        counter.write_text("12500000\n")
        assert meter.joules() == pytest.approx(7.5)
        counter.write_text("13000000\n")
        assert meter.joules() == pytest.approx(8.0)


def test_rapl_counter_that_begins_again_loses_nothing(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", energy_uj=RANGE_UJ - 1_000_000)
    [meter] = find_rapl("CPU", tmp_path).meters
    with running([meter]):
        counter.write_text("500000\n")
        assert meter.joules() == pytest.approx(1.5)


def test_rapl_without_permission_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0")
    real = Path.read_text

    def read_text(self: Path, *rest: object, **options: object) -> str:
        if self == counter:
            raise PermissionError(13, "Permission denied")
        return real(self, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)  # tests may run as root
    found = find_rapl("CPU", tmp_path)
    assert found.meters == ()
    assert found.missing is not None
    assert "sudo chmod a+r" in found.missing


@pytest.mark.parametrize("text", ["", "many", "\xff"])
def test_rapl_counter_that_is_no_number_leaves_a_reason(tmp_path: Path, text: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0").write_text(text, encoding="latin-1")
    found = find_rapl("CPU", tmp_path)
    assert found.meters == ()
    assert found.missing is not None
    assert "intel-rapl:0" in found.missing


def test_machine_without_meters_leaves_a_reason(tmp_path: Path) -> None:
    assert "RAPL" in (find_rapl("CPU", tmp_path).missing or "")
    assert "INA3221" in (find_ina3221("CPU", tmp_path).missing or "")


def test_jetson_counts_the_rail_that_feeds_the_others(tmp_path: Path) -> None:
    chip = tmp_path / "hwmon1"
    rail(chip, 1, "VDD_IN", 5000, 1200)
    rail(chip, 2, "VDD_CPU_GPU_CV", 5000, 400)
    (chip / "in7_label").write_text("sum of shunt voltages\n")  # has no current
    other = tmp_path / "hwmon0"
    rail(other, 1, "elsewhere", 1, 1)
    (other / "name").write_text("tmp102\n")
    found = find_ina3221("CPU", tmp_path)
    assert {meter.name: meter.counted for meter in found.meters} == {
        "ina3221:VDD_IN": True,
        "ina3221:VDD_CPU_GPU_CV": False,
    }
    [watts, _] = [meter.read() for meter in found.meters if isinstance(meter, PowerRail)]
    assert watts == pytest.approx(6.0)


def test_jetson_without_such_a_rail_counts_those_side_by_side(tmp_path: Path) -> None:
    for number, label in enumerate(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), start=1):
        rail(tmp_path / "hwmon3", number, label, 5000, 100)
    rail(tmp_path / "hwmon4", 1, "VDDQ_VDD2_1V8AO", 1800, 100)
    found = find_ina3221("CPU", tmp_path)
    counted = {meter.name.removeprefix("ina3221:") for meter in found.meters if meter.counted}
    assert counted == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}


class FakeNvml(SimpleNamespace):
    """As much of NVML as is called."""

    def __init__(self, *, total: bool = True) -> None:
        super().__init__(millijoules=1000, watts=70.0, total=total, index=None)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self.index = index
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"Some GPU"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if not self.total:
            raise RuntimeError("Not Supported")
        return int(self.millijoules)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return int(self.watts * 1000)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_gpu_in_use_is_the_one_that_is_read(nvml: FakeNvml) -> None:
    [meter] = find_nvml("cuda:2 (Some GPU)").meters
    assert nvml.index == 2
    assert meter.name == "nvml:2 Some GPU"
    with running([meter]):
        nvml.millijoules += 2500
        assert meter.joules() == pytest.approx(2.5)


def test_gpu_without_a_counter_is_integrated(nvml: FakeNvml) -> None:
    nvml.total = False
    [meter] = find_nvml("cuda").meters
    assert isinstance(meter, PowerRail)
    assert meter.read() == 70.0


def test_gpu_is_left_alone_where_the_engine_does_not_use_it(nvml: FakeNvml) -> None:
    assert find_nvml("CPU").missing == "the engine does not run on an NVIDIA GPU"
    assert nvml.index is None


def test_missing_package_leaves_a_reason() -> None:
    assert (
        find_nvml("cuda:0", "no_such_nvml").missing == "the package nvidia-ml-py is not installed"
    )


@pytest.mark.parametrize(
    ("device", "index"),
    [("cuda:1 (NVIDIA H200)", 1), ("CUDA", 0), ("CPU", None), ("GPU.0", None), ("cpu", None)],
)
def test_number_of_the_gpu_is_in_the_engines_words(device: str, index: int | None) -> None:
    assert cuda_index(device) == index


def counter(name: str, *, counted: bool = True) -> Counter:
    return Counter(name, "something", counted, lambda: 0.0)


def test_gpu_without_its_meter_leaves_energy_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(energy.METERS, "rapl", lambda device: Found((counter("rapl:0"),)))
    monkeypatch.setitem(energy.METERS, "nvml", lambda device: Found((), "no NVML"))
    assert find_meters("cuda:0") == Found((), "no NVML")
    assert [meter.name for meter in find_meters("CPU").meters] == ["rapl:0"]


def test_meters_of_parts_alone_leave_energy_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in energy.METERS:
        monkeypatch.setitem(energy.METERS, kind, lambda device: Found((), "nothing"))
    part = counter("core", counted=False)
    monkeypatch.setitem(energy.METERS, "rapl", lambda device: Found((part,)))
    assert find_meters("CPU") == Found((), "nothing; nothing")
