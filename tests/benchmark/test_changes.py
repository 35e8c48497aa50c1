"""Comparing two reports flags what changed, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from laco_deploy.benchmark.changes import Change, changes, ratio_interval, regressions
from laco_deploy.benchmark.changes_view import verdict
from laco_deploy.benchmark.differences import comparable, differences
from laco_deploy.benchmark.schema import BenchReport
from tests.benchmark.made import THREE, report_of

SLOW_VISION = {
    *("vision encoder", "first token"),
    *("speed-up, vision encoder", "speed-up, first token"),
}


def by_name(found: list[Change], entry: str) -> dict[str, Change]:
    return {change.quantity: change for change in found if change.entry == entry}


def test_a_slower_vision_encoder_is_flagged_where_it_counts_and_nowhere_else() -> None:
    found = changes(report_of(seed=1, noise=0.01), report_of(seed=2, noise=0.01, slower=1.3))
    worse = {(change.entry, change.quantity) for change in regressions(found)}
    assert {("laco", name) for name in SLOW_VISION} <= worse
    assert {entry for entry, _ in worse} == {"laco", "external"}
    assert not {name for _, name in worse} & {"prefill", "peak memory", "load", "per later token"}
    vision = by_name(found, "laco")["vision encoder"]
    assert vision.low is not None
    assert vision.high is not None
    assert vision.low < 1.3 < vision.high
    assert by_name(found, "laco")["speed-up, vision encoder"].ratio == pytest.approx(1 / 1.3, 0.05)


def test_the_other_way_round_it_is_better() -> None:
    found = changes(report_of(seed=1, noise=0.01, slower=1.3), report_of(seed=2, noise=0.01))
    assert regressions(found) == []
    better = {change.quantity for change in found if change.verdict == "better"}
    assert better >= SLOW_VISION
    assert verdict(found).startswith(f"Of {len(found)} quantities 0 worse, ")


def test_two_runs_of_the_same_are_the_same() -> None:
    flagged = [
        change.name
        for seed in range(4)
        for change in changes(report_of(seed=2 * seed), report_of(seed=2 * seed + 1), tolerance=0)
        if change.verdict != "same"
    ]
    assert flagged == []


def test_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        before, after = np.exp(random.normal(0, 0.1, (2, 12)))
        low, high = ratio_interval(before, 1.2 * after, 0.9, seed)
        hits += low <= 1.2 <= high
    assert 48 <= hits <= 60


def test_tolerance_hides_a_certain_but_small_change() -> None:
    before, after = report_of(noise=0.0005), report_of(noise=0.0005, slower=1.05)
    small = changes(before, after, tolerance=0.06)
    assert regressions(small) == []
    assert "vision encoder" in {one.quantity for one in regressions(changes(before, after))}


def test_too_few_rounds_and_single_values_are_never_called_a_regression() -> None:
    found = changes(report_of(runs=3, noise=0.001), report_of(runs=3, noise=0.001, slower=2))
    assert regressions(found) == []
    assert by_name(found, "laco")["vision encoder"].verdict == "unsure"
    larger = {"peak_memory_bytes": 3_000_000_000}
    made = [dataclasses.replace(one, extra=larger) for one in THREE]
    memory = by_name(changes(report_of(), report_of(made)), "laco")["peak memory"]
    assert (memory.low, memory.high) == (None, None)
    assert memory.verdict == "unsure"
    assert memory.after == 3000


def test_only_what_both_have_is_compared_and_the_rest_is_named() -> None:
    before = report_of(lengths=(6, 64))
    after = report_of(THREE[:1], lengths=(64, 256), energy=False)
    found = changes(before, after)
    assert {change.entry for change in found} == {"laco"}
    quantities = {change.quantity for change in found}
    assert "answer of 64 tokens" in quantities
    assert not quantities & {"answer of 6 tokens", "answer of 256 tokens", "energy per request"}
    assert not any(name.startswith("speed-up") for name in quantities)
    said = [*differences(before, after)]
    assert "Only the first report has: external, uncompressed." in said
    assert comparable(before, after)
    assert not comparable(report_of(THREE[:1]), _renamed(report_of(THREE[:1])))


def _renamed(report: BenchReport) -> BenchReport:
    [result] = report.results
    return report.model_copy(update={"results": (result.model_copy(update={"name": "other"}),)})


def test_machines_and_versions_that_differ_are_said() -> None:
    before = report_of()
    machine = before.machine.model_copy(
        update={"cpu_model": "Other CPU", "packages": {"laco-deploy": "0.2.0"}}
    )
    said = "\n".join(differences(before, report_of(machine=machine)))
    assert "The processor differs: Some CPU @ 3 GHz before, Other CPU after." in said
    assert "laco-deploy: 0.1.0 before, 0.2.0 after." in said
    assert "openvino: 2026.2 before, none after." in said
    assert [*differences(before, before)] == []
