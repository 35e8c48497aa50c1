"""`bench.json` says what was measured and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from laco_deploy.benchmark.machine import cpu_model_from, describe_machine
from laco_deploy.benchmark.run import BenchJob, run_benchmark
from laco_deploy.benchmark.schema import BenchReport
from tests.benchmark.fakes import Bench

PROMPT = "</script><script>alert('x')</script> & \"so on\""


@pytest.fixture
def report(bundle: Path, bench: Bench, photo: Path) -> BenchReport:
    """Vision 10, 30 and 60 ms; all else alike: 24 ms before the first token, 15 ms after."""
    bench.encode_ms = {"laco": [10], "external": [30], "uncompressed": [60]}
    job = BenchJob(
        engine=bundle,
        image=photo,
        prompt=PROMPT,
        new_tokens=(2, 4),
        runs=3,
        warmup=1,
        memory=False,
        energy=False,
        limits=False,
    )
    return run_benchmark(job, clock=bench.clock)


def test_report_survives_a_round_trip(report: BenchReport) -> None:
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_json_holds_what_a_script_looks_for(report: BenchReport) -> None:
    found = json.loads(report.model_dump_json())
    assert found["schema_version"] == 2
    laco, external, uncompressed = found["results"]
    assert [one["name"] for one in found["results"]] == ["laco", "external", "uncompressed"]
    for name in ("vision_encode", "prefill", "ttft", "tpot", "request", "preprocess", "embed"):
        assert laco[f"{name}_ms"].keys() == {"median", "p10", "p90", "runs"}
    assert laco["ttft_ms"]["median"] == 34.0
    assert laco["tokens_per_second"]["median"] == pytest.approx(4 / 0.049)
    assert laco["peak_memory_bytes"] is None
    assert laco["fresh_note"] == "not asked for"
    assert laco["energy_note"] == "not asked for"
    assert [answer["new_tokens"] for answer in laco["answers"]] == [2, 4]
    assert laco["speedup_over_uncompressed"]["vision_encode"]["median"] == 6.0
    assert external["speedup_over_uncompressed"]["vision_encode"]["median"] == 2.0
    assert uncompressed["visual_tokens"] == 16
    assert found["machine"]["usable_cores"] >= 1
    assert found["settings"]["runs"] == 3
    [bundle] = found["bundles"]
    assert len(bundle["manifest_sha256"]) == 64


def test_report_names_no_folder_of_this_machine(report: BenchReport, bundle: Path) -> None:
    assert str(bundle.parent) not in report.model_dump_json()
    assert report.bundle.name == bundle.name


def _without_last_run(found: dict[str, Any]) -> None:
    found["results"][1]["ttft_ms"]["runs"].pop()


def _unknown_key(found: dict[str, Any]) -> None:
    found["results"][0]["ttft_s"] = 1


def _other_version(found: dict[str, Any]) -> None:
    found["schema_version"] = 3


def _negative(found: dict[str, Any]) -> None:
    found["results"][0]["ttft_ms"]["p10"] = -1


def _out_of_order(found: dict[str, Any]) -> None:
    found["results"][0]["ttft_ms"]["p10"] = 1e9


def _twice(found: dict[str, Any]) -> None:
    found["results"][1]["name"] = "laco"


@pytest.mark.parametrize(
    "spoil", [_without_last_run, _unknown_key, _other_version, _negative, _out_of_order, _twice]
)
def test_schema_refuses(spoil: Any, report: BenchReport) -> None:
    found = json.loads(report.model_dump_json())
    spoil(found)
    with pytest.raises(ValidationError):
        BenchReport.model_validate(found)


def test_schema_refuses_what_json_cannot_hold(report: BenchReport) -> None:
    found = json.loads(report.model_dump_json())
    found["results"][0]["ttft_ms"]["p90"] = float("inf")
    with pytest.raises(ValidationError):
        BenchReport.model_validate(found)


def test_cpu_is_named_as_the_kernel_names_it() -> None:
    assert cpu_model_from("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n") == "Some CPU @ 3 GHz"
    assert cpu_model_from("processor\t: 0\nCPU part\t: 0xd42\n") == ""


def test_machine_tells_the_versions_that_are_installed() -> None:
    import onnxruntime

    machine = describe_machine("onnxruntime")
    assert machine.packages["onnxruntime"] == onnxruntime.__version__
    assert machine.cpu_model
