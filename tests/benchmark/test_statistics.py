"""Confidence of ratios, slopes, and who used the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from laco_deploy.benchmark.quality import Snapshot, cpu_seconds, mean_mhz, quality
from laco_deploy.benchmark.statistics import drift, paired_ratio


def test_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    held = 0
    for trial in range(200):
        own = random.lognormal(0, 0.1, 12)
        baseline = 3 * random.lognormal(0, 0.1, 12)
        ratio = paired_ratio(baseline.tolist(), own.tolist(), trial)
        held += ratio.ci95_low <= 3 <= ratio.ci95_high
    assert 0.88 <= held / 200 <= 0.995


def test_two_measurements_of_the_same_agree_within_their_intervals() -> None:
    random = np.random.default_rng(11)

    def ratio() -> tuple[float, float]:
        busy = random.lognormal(0, 0.3, 10)  # slows both of a round alike
        own = busy * random.lognormal(0, 0.05, 10)
        baseline = 2 * busy * random.lognormal(0, 0.05, 10)
        found = paired_ratio(baseline.tolist(), own.tolist(), 0)
        return found.ci95_low, found.ci95_high

    agree = 0
    for _ in range(100):
        first, second = ratio(), ratio()
        agree += first[0] <= second[1] and second[0] <= first[1]
    assert agree >= 95


def test_what_slows_a_whole_round_does_not_widen_the_interval() -> None:
    busy = [1.0, 9.0, 2.0, 5.0, 1.0, 3.0]
    found = paired_ratio([4 * one for one in busy], busy, 0)
    assert (found.ci95_low, found.median, found.ci95_high) == (4.0, 4.0, 4.0)


def test_interval_depends_on_the_seed_alone() -> None:
    random = np.random.default_rng(0)
    baseline, own = random.lognormal(0, 0.2, (2, 9)).tolist()
    assert paired_ratio(baseline, own, 3) == paired_ratio(baseline, own, 3)
    assert paired_ratio(baseline, own, 3).median == paired_ratio(baseline, own, 4).median


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_few_rounds_still_have_a_ratio(runs: int) -> None:
    found = paired_ratio([4.0] * runs, [1.0, 3.0, 7.0][:runs], 0)
    assert found.ci95_low <= found.median <= found.ci95_high


def test_noise_alone_is_seldom_a_drift() -> None:
    random = np.random.default_rng(5)
    found = [drift("one", (100 * random.lognormal(0, 0.1, 10)).tolist()) for _ in range(200)]
    assert sum(one is not None and one.detected for one in found) <= 20


def test_becoming_faster_is_a_drift_too() -> None:
    found = drift("one", [100.0 - number for number in range(8)])
    assert found is not None
    assert found.detected
    assert found.percent_in_all == pytest.approx(-100 * 7 / 96.5)


STAT = """cpu  999 0 0 9 0 0 0 0 0 0
cpu0 100 20 30 400 50 1 2 3 7 0
cpu1 200 0 0 800 0 0 0 0 0 0
cpu10 5 5 5 5 5 5 5 5 5 5
intr 1
"""


def test_cores_that_are_usable_are_the_ones_that_count() -> None:
    hertz = sum((200, 800)) / (cpu_seconds(STAT, [1]) or (0, 1))[1]
    assert cpu_seconds(STAT, [0]) == (156 / hertz, 606 / hertz)  # stolen time is busy
    assert cpu_seconds(STAT, [0, 1]) == (356 / hertz, 1606 / hertz)


@pytest.mark.parametrize("stat", ["", "cpu0 1 2 3\n", "other\n"])
def test_systems_that_do_not_tell_leave_the_load_unknown(stat: str) -> None:
    assert cpu_seconds(stat, [0]) is None


def test_frequency_is_of_the_cores_now(tmp_path: Path) -> None:
    for core, khz in enumerate((2_000_000, 3_000_000, 9_000_000)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
    assert mean_mhz(tmp_path, [0, 1]) == 2500
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("cpu MHz\t\t: 2445.430\ncpu MHz\t\t: 2000.0\n")
    assert mean_mhz(tmp_path, [7]) == pytest.approx(2222.715)
    assert mean_mhz(tmp_path / "nowhere", [0]) is None


def snapshot(
    *, wall: float, own: float, busy: float, total: float, mhz: float = 3000.0
) -> Snapshot:
    return Snapshot(wall, own, (busy, total), load_average=0.5, switches=10, mhz=mhz)


def test_other_load_is_what_is_left_of_the_busy_time() -> None:
    found = quality(
        snapshot(wall=0, own=1, busy=100, total=1000),
        snapshot(wall=10, own=9, busy=112, total=1020, mhz=2000),
        None,
        clock_read_ns=50,
        runs=10,
    )
    assert found.load.own_cpu_seconds == 8
    assert found.load.others_share == pytest.approx((12 - 8) / 20)
    assert found.load.detected
    assert found.load.involuntary_switches == 0
    assert any("Other processes had 20%" in note for note in found.notes)
    assert any("fell from 3000 to 2000 MHz" in note for note in found.notes)


def test_quiet_machine_has_no_notes() -> None:
    found = quality(
        snapshot(wall=0, own=1, busy=100, total=1000),
        snapshot(wall=10, own=11, busy=110, total=1020),
        None,
        clock_read_ns=50,
        runs=10,
    )
    assert found.load.others_share == 0
    assert found.notes == ()


def test_snapshot_of_this_machine_can_be_taken() -> None:
    first, second = Snapshot.take(), Snapshot.take()
    assert second.wall >= first.wall
    assert second.own_cpu >= first.own_cpu
