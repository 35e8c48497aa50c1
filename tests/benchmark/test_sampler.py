"""A value over time, by the trapezoidal rule, on a fake clock."""

from __future__ import annotations

import pytest

from laco_deploy.benchmark.sampler import Sampler


def test_integral_is_the_area_under_the_readings() -> None:
    readings = iter([(10.0, 0.0), (20.0, 2.0), (0.0, 3.0)])
    current = [0.0, 0.0]

    def read() -> float:
        current[:] = next(readings)
        return current[0]

    sampler = Sampler(read, seconds=3600, clock=lambda: current[1])
    sampler.start()
    assert sampler.integral() == pytest.approx((10 + 20) / 2 * 2)
    assert sampler.integral() == pytest.approx(30 + 10)
    assert sampler.largest == 20.0
    sampler.stop()


def test_reader_that_fails_in_the_thread_fails_the_stop() -> None:
    answers = iter([1.0])

    def read() -> float:
        try:
            return next(answers)
        except StopIteration:
            raise OSError("unplugged") from None

    sampler = Sampler(read, seconds=0.001)
    sampler.start()
    sampler._thread.join(10)
    with pytest.raises(OSError, match="unplugged"):
        sampler.stop()


def test_reader_that_fails_at_once_fails_the_start() -> None:
    def read() -> float:
        raise OSError("not there")

    with pytest.raises(OSError, match="not there"):
        Sampler(read).start()
