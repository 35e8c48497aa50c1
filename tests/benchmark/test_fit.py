"""The affine law of a sweep: found where it holds, with intervals that hold what was put in."""

from __future__ import annotations

import numpy as np
import pytest

from laco_deploy.benchmark.fit import DRAWS, Measured, fit_affine
from laco_runtimes.errors import ArgumentError

PAPER = {1 / 12: 23.5, 1 / 6: 26.2, 1 / 4: 29.3, 1 / 2: 39.0, 1.0: 58.0}
"""VT of AIMv2 in milliseconds, single image, by k/L (paper, Table 8)."""


def line(
    constant: float, slope: float, noise: float = 0.0, seed: int = 7, rounds: int = 12
) -> list[Measured]:
    random = np.random.default_rng(seed)
    return [
        Measured(f"k={k}", k / 24, constant + slope * k / 24 + random.normal(0, noise, rounds))
        for k in (24, 2, 6, 12)
    ]


def test_a_line_is_found_again() -> None:
    fit = fit_affine("fp32", "vision_encode", line(9.0, 48.0))
    assert fit.constant_ms == pytest.approx(9.0)
    assert fit.slope_ms == pytest.approx(48.0)
    assert fit.r_squared == pytest.approx(1.0)
    assert [point.fraction for point in fit.points] == [2 / 24, 0.25, 0.5, 1.0]
    for point in fit.points:
        assert point.measured_ms == pytest.approx(point.fitted_ms)
        assert point.measured_ms == pytest.approx(9.0 + 48.0 * point.fraction)


def test_the_law_of_the_papers_table_is_that_of_the_specification() -> None:
    fit = fit_affine(
        "AIMv2", "vision_encode", [Measured(str(k), k, [time]) for k, time in PAPER.items()]
    )
    assert (fit.constant_ms, fit.slope_ms) == (
        pytest.approx(20.0, abs=0.1),
        pytest.approx(37.9, 0.01),
    )
    assert fit.r_squared == pytest.approx(0.9998, abs=1e-4)
    assert fit.constant_ci95.low == fit.constant_ci95.high  # one round has no noise


def test_the_truth_is_inside_as_many_intervals_as_is_said() -> None:
    tries = 120
    fits = [fit_affine("", "ttft", line(9.0, 48.0, 2.0, seed)) for seed in range(tries)]
    constants = sum(fit.constant_ci95.low <= 9.0 <= fit.constant_ci95.high for fit in fits)
    slopes = sum(fit.slope_ci95.low <= 48.0 <= fit.slope_ci95.high for fit in fits)
    # 95 % of 120 is 114; two standard deviations of such a count are 5.
    assert 106 <= constants <= tries
    assert 106 <= slopes <= tries


def test_noise_widens_the_intervals() -> None:
    quiet, loud = (fit_affine("", "ttft", line(9.0, 48.0, noise)) for noise in (0.1, 3.0))
    assert loud.slope_ci95.high - loud.slope_ci95.low > 10 * (
        quiet.slope_ci95.high - quiet.slope_ci95.low
    )


def test_a_disturbed_round_of_all_points_does_not_tilt_the_line() -> None:
    points = [
        Measured(one.name, one.fraction, [*one.runs_ms[:-1], 10 * one.runs_ms[-1]])
        for one in line(9.0, 48.0)
    ]
    fit = fit_affine("", "ttft", points)
    assert (fit.constant_ms, fit.slope_ms) == (pytest.approx(9.0), pytest.approx(48.0))


def test_the_same_times_give_the_same_intervals() -> None:
    once, again = (fit_affine("", "ttft", line(9.0, 48.0, 1.0)) for _ in range(2))
    assert once == again
    assert DRAWS >= 1000


def test_what_is_no_line_says_so() -> None:
    points = [Measured(str(k), k, [1 / k] * 3) for k in (0.05, 0.1, 0.5, 1.0)]
    fit = fit_affine("", "ttft", points)
    assert fit.r_squared is not None
    assert fit.r_squared < 0.8


def test_two_points_have_no_r_squared() -> None:
    assert fit_affine("", "ttft", line(9.0, 48.0)[:2]).r_squared is None


@pytest.mark.parametrize(
    ("points", "word"),
    [
        ([Measured("a", 0.5, [1.0]), Measured("b", 0.5, [2.0])], "two different k"),
        ([], "two different k"),
        ([Measured("a", 0.5, [1.0]), Measured("b", 1.0, [2.0, 3.0])], "as many rounds"),
        ([Measured("a", 0.5, []), Measured("b", 1.0, [])], "as many rounds"),
    ],
)
def test_what_has_no_line_is_refused(points: list[Measured], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        fit_affine("", "ttft", points)
