"""SIGKILL at random moments; see kill_loop.py for how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.crash.run_program import run_program


def kill_loop(out: Path, *options: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run_program("kill_loop", str(out), *options))
    return result


def check(result: dict[str, Any], moments: int, steps: int) -> None:
    assert len(result["resumed_at"]) == moments + 1
    assert result["resumed_at"] == sorted(result["resumed_at"])
    assert result["steps_of_all_runs"] >= (moments + 1) * steps
    assert result["missing_steps"] == []
    assert result["differing_steps"] == []


def test_two_kills_change_no_bit(tmp_path: Path) -> None:
    check(kill_loop(tmp_path, "--moments", "2", "--steps", "6"), 2, 6)


@pytest.mark.full
def test_forty_kills_change_no_bit(tmp_path: Path) -> None:
    result = kill_loop(tmp_path, "--moments", "40", "--steps", "30")
    check(result, 40, 30)
    assert result["cut_off_in_saving"] >= 5
