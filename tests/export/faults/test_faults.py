"""An export that is killed or runs out of disk leaves the old bundle or the new one."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import RandomBundles
from tests.export.faults.run_program import run_program

OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and exchanges folders")


@cache
def can_mount() -> bool:
    try:
        done = subprocess.run(
            [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="the system lets nobody mount a tmpfs")


def kill(bundles: RandomBundles, folder: Path, target: str, *options: object) -> dict[str, Any]:
    result = run_program("kill_loop", folder, bundles.checkpoint, bundles(target), *options)
    assert result["left_in_the_end"] == []
    return result


def fill(bundles: RandomBundles, folder: Path, target: str, *options: object) -> dict[str, Any]:
    return run_program(
        *("fill_loop", folder, bundles.checkpoint, bundles(target), *options), before=OWN_MOUNTS
    )


@pytest.mark.parametrize("moments", [3, pytest.param(12, marks=pytest.mark.full)])
def test_kills_while_sealing_and_replacing_leave_the_old_bundle_or_the_new(
    bundle_for: RandomBundles, tmp_path: Path, moments: int
) -> None:
    result = kill(bundle_for, tmp_path, "onnxruntime", "--maker", "seal", "--moments", moments)
    assert len(result["seen"]) == moments


@pytest.mark.full
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_forty_kills_of_an_export_leave_the_old_bundle_or_the_new(
    bundle_for: RandomBundles, tmp_path: Path, target: str
) -> None:
    result = kill(bundle_for, tmp_path, target, "--moments", 40)
    assert len(result["seen"]) == 40
    assert set(result["seen"]) == {"old", "new"}
    assert result["left_by_kills"] > 10
    assert result["missed"] < 20


@needs_mount
def test_a_disk_that_fills_up_while_sealing_leaves_the_old_bundle(
    bundle_for: RandomBundles, tmp_path: Path
) -> None:
    options = ("--maker", "seal", "--step", 400_000)
    result = fill(bundle_for, tmp_path, "onnxruntime", *options)
    assert result["done_in_the_end"]
    assert len(result["failed_at"]) >= 3


@needs_mount
@pytest.mark.full
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_disk_that_fills_up_at_any_point_of_an_export_leaves_the_old_bundle(
    bundle_for: RandomBundles, tmp_path: Path, target: str
) -> None:
    result = fill(bundle_for, tmp_path, target, "--step", 65_536)
    assert result["done_in_the_end"]
    assert len(result["failed_at"]) > 10
