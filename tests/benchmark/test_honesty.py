"""The tool recovers known delays, says what it costs, and goes on where a part is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from laco_deploy.benchmark import extras
from laco_deploy.benchmark.energy import Counter, Found
from laco_deploy.benchmark.run import NO_BASELINE, run_benchmark
from laco_deploy.benchmark.schema import BenchReport
from laco_runtimes.errors import ContextLengthError, EngineError
from tests.benchmark.fakes import MS, Bench
from tests.benchmark.test_measure import job, result

pytestmark = pytest.mark.usefixtures("photo")
READ_NS = 10_000
"""A hundred times what a reading costs here."""


def test_known_delays_are_recovered_within_two_percent(bundle: Path, bench: Bench) -> None:
    bench.read_ns = READ_NS
    bench.encode_ms, bench.prefill_ms = {"laco": [40]}, {"laco": 25}
    found = result(run_benchmark(job(bundle, new_tokens=(6, 64)), clock=bench.clock), "laco")
    wanted = {
        "preprocess_ms": 3,
        "vision_encode_ms": 40,
        "embed_ms": 1,
        "prefill_ms": 25,
        "ttft_ms": 69,
        "tpot_ms": 5,
        "request_ms": 69 + 63 * 5,
    }
    for name, value in wanted.items():
        assert getattr(found, name).median == pytest.approx(value, rel=0.02)
    short, long = found.answers
    assert short.request_ms.median == pytest.approx(69 + 5 * 5, rel=0.02)
    assert short.tokens_per_second.median == pytest.approx(6000 / (69 + 5 * 5), rel=0.02)
    assert long.tokens_per_second.median == pytest.approx(64000 / (69 + 63 * 5), rel=0.02)


def test_stages_add_up_to_the_request_and_overhead_is_told(bundle: Path, bench: Bench) -> None:
    bench.read_ns = READ_NS
    found = result(run_benchmark(job(bundle, new_tokens=(6,)), clock=bench.clock), "laco")
    assert -0.03 < found.stage_sum_error < 0  # the readings between the stages are missing
    readings = 14
    assert found.overhead_share == pytest.approx(2 * readings * READ_NS / MS / 59, rel=0.5)
    assert found.overhead_share < 0.01 * READ_NS / 1000
    report = run_benchmark(job(bundle), clock=bench.clock)
    assert report.quality.clock_read_ns == READ_NS


def test_clock_that_costs_nothing_leaves_no_overhead(bundle: Path, bench: Bench) -> None:
    found = result(run_benchmark(job(bundle), clock=bench.clock), "laco")
    assert found.stage_sum_error == pytest.approx(0, abs=1e-12)
    assert found.overhead_share == pytest.approx(0, abs=1e-12)


def test_all_lengths_are_read_off_one_request(bundle: Path, bench: Bench) -> None:
    report = run_benchmark(job(bundle, new_tokens=(9, 3, 3), runs=2), clock=bench.clock)
    assert report.settings.new_tokens == (3, 9)
    assert [call for _, call in bench.calls].count("step") == 3 * 2 * 8
    short, long = result(report, "laco").answers
    assert long.request_ms.median - short.request_ms.median == 6 * bench.step_ms


def test_variants_of_a_bundle_share_one_language_model(bundle: Path, bench: Bench) -> None:
    """A device may have room for one."""
    run_benchmark(job(bundle), clock=bench.clock)
    assert {name for name, call in bench.calls if call == "encode"} > {"laco", "uncompressed"}
    assert {name for name, call in bench.calls if call == "prefill"} == {"laco"}


def test_speedup_shrinks_as_answers_grow(bundle: Path, bench: Bench) -> None:
    bench.encode_ms = {"uncompressed": [100]}
    answers = result(
        run_benchmark(job(bundle, new_tokens=(2, 40)), clock=bench.clock), "laco"
    ).answers
    ratios = [answer.speedup_over_uncompressed for answer in answers]
    assert ratios[0] is not None
    assert ratios[1] is not None
    assert ratios[0].median == pytest.approx((100 + 29) / (10 + 29))
    assert ratios[1].median == pytest.approx((100 + 24 + 195) / (10 + 24 + 195))


def test_lengths_without_room_are_left_out_and_said(bundle: Path, bench: Bench) -> None:
    report = run_benchmark(job(bundle, new_tokens=(6, 64, 256)), clock=bench.clock)
    assert report.settings.new_tokens == (6, 64)
    assert report.settings.new_tokens_requested == (6, 64, 256)
    assert any("256 tokens do not fit" in note for note in report.quality.notes)
    with pytest.raises(ContextLengthError):
        run_benchmark(job(bundle, new_tokens=(256,)), clock=bench.clock)


def test_variant_that_does_not_load_leaves_the_others(bundle: Path, bench: Bench) -> None:
    bench.broken = {"external": -1}
    report = run_benchmark(job(bundle), clock=bench.clock)
    assert [one.name for one in report.results] == ["laco", "uncompressed"]
    assert report.failed == {"external": "external does not load. Export it again."}
    assert result(report, "laco").speedup_over_uncompressed is not None


@pytest.mark.parametrize("request_number", [0, 2])
def test_variant_that_fails_in_the_middle_leaves_the_others(
    request_number: int, bundle: Path, bench: Bench
) -> None:
    bench.broken = {"external": request_number}
    report = run_benchmark(job(bundle, warmup=1, runs=4), clock=bench.clock)
    assert [one.name for one in report.results] == ["laco", "uncompressed"]
    assert report.failed == {"external": "the accelerator is gone"}
    assert all(len(one.ttft_ms.runs) == 4 for one in report.results)
    assert bench.requests().count("external") == request_number + 1


def test_baseline_that_fails_leaves_times_without_ratios(bundle: Path, bench: Bench) -> None:
    bench.broken = {"uncompressed": 1}
    report = run_benchmark(job(bundle), clock=bench.clock)
    assert "uncompressed" in report.failed
    assert all(one.baseline is None for one in report.results)
    assert all(one.speedup_over_uncompressed is None for one in report.results)


@pytest.mark.parametrize("stage", [-1, 0, 1])
def test_nothing_left_is_an_error(stage: int, bundle: Path, bench: Bench) -> None:
    bench.broken = dict.fromkeys(("laco", "external", "uncompressed"), stage)
    with pytest.raises(EngineError, match=r"does not load|the accelerator is gone.*doctor"):
        run_benchmark(job(bundle, warmup=1), clock=bench.clock)


@pytest.mark.parametrize("bundle", [("laco",)], indirect=True)
def test_bundle_without_a_baseline_says_so(bundle: Path, bench: Bench) -> None:
    assert run_benchmark(job(bundle), clock=bench.clock).failed == {"uncompressed": NO_BASELINE}


def test_energy_is_what_the_meter_counted_per_request(
    bundle: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    watts = 50.0
    meter = Counter("rapl:0", "the processor", True, lambda: watts * bench.now / 1e9)
    monkeypatch.setattr(extras, "find_meters", lambda device: Found((meter,)))
    found = result(run_benchmark(job(bundle, energy=True), clock=bench.clock), "laco")
    assert found.energy_joules == pytest.approx(watts * found.request_ms.median / 1e3)
    assert [reading.meter for reading in found.energy] == ["rapl:0"]
    assert found.energy_note is None


def test_no_meter_leaves_a_note_and_the_times(
    bundle: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_meters", lambda device: Found((), "no permission"))
    report = run_benchmark(job(bundle, energy=True), clock=bench.clock)
    assert report.failed["energy"] == "no permission"
    assert all(one.energy_note == "no permission" for one in report.results)
    assert all(one.energy_joules is None for one in report.results)


def test_meter_that_goes_away_leaves_a_note(
    bundle: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> float:
        if bench.now > first:
            raise OSError("unplugged")
        return 0.0

    first = 0
    meter = Counter("rapl:0", "the processor", True, read)
    monkeypatch.setattr(extras, "find_meters", lambda device: Found((meter,)))
    report = run_benchmark(job(bundle, energy=True), clock=bench.clock)
    assert {one.energy_note for one in report.results} == {"unplugged"}


def test_limits_that_fail_leave_the_times(
    bundle: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(extras, "measure_rates", broken)
    report = run_benchmark(job(bundle, limits=True), clock=bench.clock)
    assert report.limits is None
    assert report.failed["limits"] == "MemoryError"


def drifting(bundle: Path, bench: Bench, costs: list[int]) -> BenchReport:
    bench.encode_ms = {"uncompressed": list(costs)}
    return run_benchmark(job(bundle, runs=len(costs)), clock=bench.clock)


def test_slow_warming_is_detected_and_said(bundle: Path, bench: Bench) -> None:
    report = drifting(bundle, bench, [100 + 2 * number for number in range(10)])
    drift = report.quality.drift
    assert drift is not None
    assert drift.variant == "uncompressed"
    request = 100 + 39 + 9  # the median
    assert drift.percent_per_round == pytest.approx(100 * 2 / request)
    assert drift.detected
    assert any("became slower by 12.2 %" in note for note in report.quality.notes)


def test_one_slow_request_is_no_drift(bundle: Path, bench: Bench) -> None:
    report = drifting(bundle, bench, [100, 101, 100, 99, 100, 101, 99, 100, 100, 900])
    assert report.quality.drift is not None
    assert not report.quality.drift.detected
    assert not any("slower" in note for note in report.quality.notes)


def test_too_few_rounds_for_a_drift_are_none(bundle: Path, bench: Bench) -> None:
    report = run_benchmark(job(bundle, runs=3), clock=bench.clock)
    assert report.quality.drift is None
    assert any("3 rounds are too few" in note for note in report.quality.notes)


def test_time_that_is_short_leaves_rounds_out(bundle: Path, bench: Bench) -> None:
    """A round takes 147 ms; loading and the first requests take as long again."""
    report = run_benchmark(job(bundle, runs=50, warmup=1, max_seconds=1.0), clock=bench.clock)
    assert 3 <= report.settings.runs <= 6
    assert bench.now <= 1.0 * 1e9
    assert any("of 50 rounds" in note for note in report.quality.notes)


def test_time_that_is_short_leaves_variants_out_but_the_baseline(
    bundle: Path, bench: Bench
) -> None:
    bench.load_ms = 400
    report = run_benchmark(job(bundle, runs=5, warmup=1, max_seconds=1.4), clock=bench.clock)
    assert [one.name for one in report.results] == ["laco", "uncompressed"]
    assert report.failed == {"external": "left out, as there was no time for it"}
    assert bench.requests().count("laco") == 1 + report.settings.runs
    assert 3 <= report.settings.runs <= 5


def test_time_for_one_request_each_gives_the_first_ones_and_says_so(
    bundle: Path, bench: Bench
) -> None:
    """The baseline comes in for a speed-up, though no round will fit."""
    bench.load_ms, bench.encode_ms = 400, {"uncompressed": [300]}
    report = run_benchmark(job(bundle, warmup=1, max_seconds=1.25), clock=bench.clock)
    assert bench.requests() == ["laco", "uncompressed"]
    assert bench.now <= 1.25e9
    assert (report.settings.runs, report.settings.warmup) == (1, 0)
    speedup = result(report, "laco").speedup_over_uncompressed
    assert speedup is not None
    assert speedup.ttft.median > 4
    assert any("first request of each variant alone" in note for note in report.quality.notes)


def test_a_load_that_takes_all_the_time_still_gives_an_answer(bundle: Path, bench: Bench) -> None:
    bench.load_ms = 400
    report = run_benchmark(job(bundle, warmup=1, max_seconds=0.1), clock=bench.clock)
    assert bench.requests() == ["laco"]
    assert sorted(report.failed) == ["external", "uncompressed"]
    assert report.settings.runs == 1
