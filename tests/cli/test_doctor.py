"""`laco doctor`: what it finds, what it says to do, and how it ends."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from packaging.requirements import Requirement

from laco_deploy.cli import run
from laco_deploy.doctor import drivers, examine, machine, probes
from laco_deploy.doctor.apart import run_apart
from laco_deploy.doctor.bundle import check_folder
from laco_deploy.doctor.drivers import check_nvidia, unseen_intel
from laco_deploy.doctor.finding import Finding, finding_of
from laco_deploy.doctor.graph import SPEC, X, Y, tiny_onnx
from laco_deploy.doctor.packages import check_packages, read_requirements, release
from laco_runtimes.engines import ENGINES
from laco_runtimes.errors import EngineError, MissingPackageError
from tests.cli import checks
from tests.runtime.tensorrt.fake_trt import Arrays, FakeDevice, FakePlan, FakeTrt

if TYPE_CHECKING:
    from tests.bundles import RandomBundles

ROOT = Path(__file__).parents[2]

OK = Finding(area="engine", name="fine", state="ok", said="fine.")
BROKEN = Finding(area="engine", name="broken", state="failed", said="it is.", remedy="Mend it.")


def laco(*arguments: str | Path) -> int:
    return run([str(argument) for argument in arguments])


def apart(check: Callable[..., object], *arguments: object, timeout_s: float = 60) -> list[Finding]:
    return list(
        run_apart(
            check,  # type: ignore[arg-type]
            *arguments,  # type: ignore[arg-type]
            area="engine",
            name="it",
            timeout_s=timeout_s,
            remedy="Mend it.",
        )
    )


def told(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr(examine, "examine", lambda *_: iter(findings))


def test_every_engine_has_a_probe_with_its_package_and_extra() -> None:
    asked = {name: (probe.package, probe.extra) for name, probe in probes.PROBES.items()}
    assert asked.items() >= {
        (name, (engine.package, engine.extra))
        for name, engine in ENGINES.items()
        if name != "torch"
    }


def test_the_tiny_graph_is_valid_and_has_the_declared_inputs_and_outputs() -> None:
    model = onnx.load_from_string(tiny_onnx())
    onnx.checker.check_model(model, full_check=True)
    for ports, declared in (
        (model.graph.input, SPEC.inputs),
        (model.graph.output, SPEC.outputs),
    ):
        shapes = [
            (one.name, *(d.dim_value for d in one.type.tensor_type.shape.dim)) for one in ports
        ]
        assert shapes == [(one.name, *one.dims) for one in declared]
    [found] = ReferenceEvaluator(model).run(None, {"x": X})
    assert np.array_equal(found, Y)
    assert (Y > 0).any()
    assert (Y == 0).any(), "the Relu does something"


@pytest.mark.parametrize(
    ("ask", "device"),
    [
        (probes.ask_onnxruntime, "onnxruntime on cpu"),
        (probes.ask_openvino, "openvino on CPU"),
        (probes.ask_torch, "torch on cpu"),
    ],
)
def test_an_engine_answers_the_tiny_graph(
    ask: Callable[[], Iterator[Finding]], device: str
) -> None:
    found = {finding.name: finding for finding in ask()}
    assert found[device].state == "ok"
    assert "is right" in found[device].said


def test_an_engine_that_gives_wrong_numbers_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "Y", Y + 1)
    found = next(probes.ask_onnxruntime())
    assert (found.state, found.remedy) == ("failed", "Install ONNX Runtime again.")
    assert "wrong numbers" in found.said


def test_an_engine_that_raises_has_failed_with_its_words_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "tiny_onnx", lambda: b"no graph")
    found = next(probes.ask_openvino())
    assert found.state == "failed"
    assert found.said.startswith("a tiny inference failed: ")
    assert found.remedy == "Install OpenVINO again."


def test_a_provider_that_falls_back_has_failed_where_there_is_a_gpu_and_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnxruntime import InferenceSession

    class FallsBack(InferenceSession):  # type: ignore[misc]
        def __init__(self, model: bytes, options: object, providers: list[str]) -> None:
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    built = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.InferenceSession", FallsBack)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: built)
    for state, expected in (("ok", "failed"), ("absent", "note")):
        gpu = Finding(area="driver", name="nvidia", state=state, said="")  # type: ignore[arg-type]
        monkeypatch.setattr(probes, "check_nvidia", lambda gpu=gpu: [gpu])
        found = {finding.name: finding for finding in probes.ask_onnxruntime()}
        assert found["onnxruntime on cuda"].state == expected
        assert found["onnxruntime on cpu"].state == "ok"


def test_onnxruntime_over_the_files_of_onnxruntime_gpu_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "_installed", lambda name: name == "onnxruntime-gpu")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    last = list(probes.ask_onnxruntime())[-1]
    assert last.state == "failed"
    assert "--force-reinstall onnxruntime-gpu" in str(last.remedy)


def test_a_plan_of_the_tiny_graph_is_bound_and_run() -> None:
    def compute(inputs: Arrays) -> Arrays:
        assert np.array_equal(inputs["x"], X)
        return {"y": Y}

    device = FakeDevice()
    trt = FakeTrt(device)
    trt.plans[b"plan"] = FakePlan(SPEC, compute)
    assert np.array_equal(probes.run_plan(trt, device, b"plan"), Y)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_without_a_gpu_is_a_note_and_with_a_broken_one_a_failure(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(asked: str) -> None:
        raise EngineError("no NVIDIA GPU can be used here. Check the driver with nvidia-smi.")

    monkeypatch.setattr("laco_runtimes.engines.tensorrt_device.open_device", no_device)
    monkeypatch.setattr("laco_runtimes.plan_products.import_product", lambda product: None)
    monkeypatch.setattr(probes, "make_plan", lambda product, *targets: b"plan")
    for state, expected in (("absent", "note"), ("ok", "failed")):
        gpu = Finding(area="driver", name="nvidia", state=state, said="")  # type: ignore[arg-type]
        monkeypatch.setattr(probes, "check_nvidia", lambda gpu=gpu: [gpu])
        [found] = probes.ask_tensorrt(name)
        assert found.state == expected
    assert found.remedy == "Check the driver with nvidia-smi."


def test_a_check_that_crashes_is_a_failure_that_names_the_signal() -> None:
    [found] = apart(os.abort)
    assert (found.state, found.remedy) == ("failed", "Mend it.")
    assert "SIGABRT" in found.said


def test_a_check_that_hangs_is_ended_and_is_a_failure() -> None:
    start = time.monotonic()
    [found] = apart(time.sleep, 600, timeout_s=0.5)
    assert time.monotonic() - start < 60
    assert found.state == "failed"
    assert "within 0.5 s" in found.said


def test_a_check_apart_gives_its_findings_in_order() -> None:
    assert [finding.said for finding in apart(checks.names, "a", "b")] == ["a.", "b."]


def test_an_error_of_a_check_apart_is_a_failure_with_its_own_remedy() -> None:
    first, last = apart(checks.broken_after, "a")
    assert first.state == "ok"
    assert (last.said, last.remedy) == ("it is broken.", "Mend it quickly.")


def test_a_package_that_does_not_import_is_a_failure_with_its_words() -> None:
    [found] = apart(checks.not_to_be_imported)
    assert found.said == "ImportError: libsomething.so.1: cannot open shared object file"
    assert found.remedy == "Mend it."


def test_a_failure_without_a_remedy_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="has no remedy"):
        Finding(area="engine", name="it", state="failed", said="broken.")
    assert finding_of("engine", "it", EngineError("broken")).remedy
    missing = finding_of("engine", "it", MissingPackageError("openvino", "openvino"))
    assert missing.remedy == "Install it with: pip install 'laco-deploy[openvino]'"


def test_requirements_of_this_package_are_all_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra, wanted in project["optional-dependencies"].items():
        lines += [f"{one}{' and' if ';' in one else ';'} extra == '{extra}'" for one in wanted]
    read = {wanted.name: wanted for wanted in read_requirements(lines)}
    for line in lines:
        requirement = Requirement(line.replace(" and extra", " ; extra").partition(";")[0])
        if "extra == 'dev'" not in line:
            [floor] = requirement.specifier
            assert read[requirement.name].floor == floor.version
    assert read["numpy"].extras == set()
    assert read["onnxruntime"].extras == {"onnxruntime", "export"}
    assert "pytest" not in read


@pytest.mark.parametrize(
    ("older", "newer"), [("1.9", "1.10"), ("2.0", "2.0.1"), ("1.24.3", "1.24.4+cpu")]
)
def test_versions_compare_as_numbers(older: str, newer: str) -> None:
    assert release(older) < release(newer)
    assert release("2") == release("2.0.0")


def test_a_package_that_is_too_old_fails_where_an_engine_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"laco-deploy": "1.0", "numpy": "2.1", "openvino": "2025.1", "plotly": "1.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    lines = ["numpy>=2", "rich>=13", "openvino>=2026.2; extra == 'openvino'"]
    lines += ["plotly>=6; extra == 'report'", "torch>=2.10; extra == 'train'"]
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    found = {finding.name: finding for finding in check_packages({"openvino"})}
    states = {name: finding.state for name, finding in found.items()}
    assert states == {
        "laco-deploy": "ok",
        "numpy": "ok",
        "rich": "failed",
        "openvino": "failed",
        "plotly": "note",
    }
    assert found["openvino"].remedy == "pip install --upgrade 'openvino>=2026.2'"


class FakeCuda:
    """`libcuda` of one GPU, or one that does not start."""

    def __init__(self, code: int) -> None:
        self._code = code

    def cuInit(self, flags: int) -> int:
        return self._code

    def cuDriverGetVersion(self, version: object) -> None:
        _fill(version, 13010)

    def cuDeviceGetCount(self, count: object) -> None:
        _fill(count, 1)

    def cuDeviceGet(self, device: object, index: int) -> None:
        _fill(device, 0)

    def cuDeviceGetName(self, name: ctypes.Array[ctypes.c_char], size: int, device: object) -> None:
        name.value = b"Fake GPU"

    def cuDeviceGetAttribute(self, value: object, attribute: int, device: object) -> None:
        _fill(value, {75: 8, 76: 9}[attribute])

    def cuDeviceTotalMem_v2(self, size: object, device: object) -> None:
        _fill(size, 24_000_000_000)


def _fill(reference: object, value: int) -> None:
    reference._obj.value = value  # type: ignore[attr-defined]  # what `byref` refers to


@pytest.mark.parametrize(
    ("code", "state", "remedy"),
    [
        (100, "note", None),
        (803, "failed", "Restart the machine"),
        (999, "failed", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_start_fails_unless_there_is_no_gpu(
    code: int, state: str, remedy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers.ctypes, "CDLL", lambda name: FakeCuda(code))
    [found] = check_nvidia()
    assert found.state == state
    assert found.remedy is None if remedy is None else remedy in str(found.remedy)


def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers.ctypes, "CDLL", lambda name: FakeCuda(0))
    driver, gpu = check_nvidia()
    assert driver.said == "up to CUDA 13.1, 1 GPU(s)."
    assert gpu.said == "Fake GPU, 24.0 GB, compute capability 8.9."


def test_a_container_without_its_gpu_is_told_from_a_machine_without_a_driver(
    tmp_path: Path,
) -> None:
    [found] = check_nvidia("no-such-library.so", str(tmp_path / "none"))
    assert (found.state, found.remedy) == ("absent", None)
    (tmp_path / "version").touch()
    [found] = check_nvidia("no-such-library.so", str(tmp_path / "version"))
    assert "--gpus all" in str(found.remedy)


def test_an_intel_gpu_that_openvino_does_not_see_is_told_with_its_remedy(tmp_path: Path) -> None:
    def node(path: str, vendor: str) -> None:
        file = tmp_path / "sys" / "class" / path / "device" / "vendor"
        file.parent.mkdir(parents=True)
        file.write_text(f"{vendor}\n")

    node("drm/renderD128", "0x10de")
    assert list(unseen_intel(["CPU"], tmp_path)) == []
    node("drm/renderD129", "0x8086")
    node("accel/accel0", "0x8086")
    gpu, npu = unseen_intel(["CPU"], tmp_path)
    assert "usermod -aG render" in str(gpu.remedy)
    assert (npu.name, npu.state) == ("intel NPU", "note")
    for name in ("dri/renderD129", "accel/accel0"):
        (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / name).touch()
    gpu, _ = unseen_intel(["CPU"], tmp_path)
    assert "intel-opencl-icd" in str(gpu.remedy)
    [left] = unseen_intel(["CPU", "GPU.0", "GPU.1"], tmp_path)
    assert left.name == "intel NPU"


@pytest.mark.parametrize(("free", "state"), [(10_000_000, "failed"), (9_000_000_000, "ok")])
def test_too_little_memory_is_a_failure(
    free: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: free)
    found = {finding.name: finding.state for finding in machine.check_machine()}
    assert found["memory"] == state


def test_a_folder_for_plans_that_others_can_write_to_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACO_CACHE_DIR", str(tmp_path))
    [found] = machine.check_plan_folder()
    assert found.state == "ok"
    (tmp_path / "plans").chmod(0o777)
    [found] = machine.check_plan_folder()
    assert found.state == "failed"
    assert "LACO_CACHE_DIR" in str(found.remedy)


def test_no_engine_at_all_is_a_failure_and_a_missing_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(examine, "find_spec", lambda name: None)
    *absent, last = examine.check_engines()
    assert {finding.state for finding in absent} == {"absent"}
    assert "pip install 'laco-deploy[openvino]'" in {finding.remedy for finding in absent}
    assert (last.state, last.name) == ("failed", "any engine")


def test_a_bundle_is_loaded_and_asked(bundle_for: RandomBundles) -> None:
    bundle = bundle_for("onnxruntime")
    found = {finding.name: finding for finding in check_folder(str(bundle), "cpu")}
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["engine"].said.startswith("onnxruntime on cpu")
    assert "16 visual tokens" in found["answer"].said


def test_a_checkpoint_is_loaded_and_asked(bundle_for: RandomBundles) -> None:
    found = {finding.name: finding for finding in check_folder(str(bundle_for.checkpoint), "cpu")}
    assert {finding.state for finding in found.values()} == {"ok"}
    assert found["engine"].said.startswith("torch on cpu")


@pytest.mark.parametrize(
    ("device", "remedy"), [("toaster", "Choose one of: "), ("cpu", "Copy or export")]
)
def test_a_bundle_that_cannot_run_is_one_failure_with_the_remedy_of_its_error(
    device: str, remedy: str, bundle_for: RandomBundles, tmp_path: Path
) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(bundle_for("onnxruntime"), copy)
    if device == "cpu":
        (copy / "README.md").write_text("changed")
    *_, last = check_folder(str(copy), device)
    assert last.state == "failed"
    assert remedy in str(last.remedy)


def test_the_command_ends_with_code_0_and_shows_every_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, OK)
    assert laco("doctor") == 0
    assert "fine.\n" in capsys.readouterr().out


def test_a_failure_ends_with_code_1_and_shows_its_remedy_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, OK, BROKEN)
    assert laco("doctor") == 1
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()][-2:] == [
        ["FAILED", "broken", "it", "is."],
        ["->", "Mend", "it."],
    ]
    assert "1 of 2 checks failed (broken)" in shown.err


def test_json_holds_every_finding_also_where_one_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, OK, BROKEN)
    assert laco("doctor", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["schema_version"], report["ok"]) == (1, False)
    assert [Finding(**one) for one in report["findings"]] == [OK, BROKEN]


def test_the_whole_examination_of_this_machine_names_every_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LACO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        examine, "find_spec", lambda name: SimpleNamespace() if name == "onnxruntime" else None
    )
    stages: list[str] = []
    found = {f.name: f for f in examine.examine(None, "auto", stages.append)}
    assert found["onnxruntime on cpu"].state == "ok"
    assert {"system", "processor", "memory", "nvidia", "numpy", "tensorrt", "torch"} <= set(found)
    assert stages == ["the machine", "packages", "drivers", "onnxruntime"]


def test_help_shows_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert laco("doctor", "--help") == 0
    shown = capsys.readouterr().out
    assert "laco doctor engine/" in shown
    assert "Exit codes" in shown
    assert laco("--help") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " doctor " in line)
    assert "Check packages, drivers" in line


def test_a_folder_that_is_not_there_is_one_failure(tmp_path: Path) -> None:
    [found] = check_folder(str(tmp_path / "engine"), "auto")
    assert found.state == "failed"
    assert "laco export" in str(found.remedy)
