"""Check 11 of the TensorRT path: a plan is bound to its origin and is never anybody else's."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from laco_runtimes.errors import EngineError
from laco_runtimes.plan_builder import BuiltPlan
from laco_runtimes.plans import CACHE_VARIABLE, PlanCache, PlanFacts, StoredPlan, plan_folder

posix = pytest.mark.skipif(os.name == "nt", reason="Windows keeps such folders private by itself")


def facts(**changes: Any) -> PlanFacts:
    values: dict[str, Any] = {
        "module": "decoder",
        "product": "tensorrt-rtx",
        "version": "1.7.1",
        "compute_capability": "8.9",
        "device": "NVIDIA RTX",
        "driver": "13.0",
        "precision": "fp16",
        "profiles": "one",
        "onnx": {"tensorrt-rtx/decoder.onnx": "0" * 64},
    }
    return PlanFacts(**(values | changes))


class Builder:
    """Builds plans that say how many were built before them."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self) -> BuiltPlan:
        self.built += 1
        data = f"plan {self.built}".encode()
        return BuiltPlan(data, 1.0, None, None, None, ())


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


def only(cache: PlanCache, suffix: str) -> Path:
    [path] = cache.folder.glob(f"*{suffix}")
    return path


def test_a_plan_is_built_once_and_found_again(cache: PlanCache, build: Builder) -> None:
    assert cache.get(facts(), build) == StoredPlan(
        b"plan 1", fresh=True, verified=False, reason="none was built here before"
    )
    assert cache.get(facts(), build) == StoredPlan(
        b"plan 1", fresh=False, verified=False, reason="found"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "1.8.0"}, "for version 1.7.1, and this is 1.8.0"),
        ({"driver": "13.1"}, "for driver 13.0, and this is 13.1"),
        ({"device": "NVIDIA L4"}, "for device NVIDIA RTX, and this is NVIDIA L4"),
        ({"precision": "int8"}, "for precision fp16, and this is int8"),
        ({"profiles": "two"}, "for profiles one, and this is two"),
    ],
)
def test_a_plan_that_is_bound_to_something_else_is_built_again_in_its_place(
    cache: PlanCache, build: Builder, changes: dict[str, Any], said: str
) -> None:
    cache.get(facts(), build)
    stored = cache.get(facts(**changes), build)
    assert (stored.data, stored.fresh) == (b"plan 2", True)
    assert said in stored.reason
    assert only(cache, ".plan").read_bytes() == b"plan 2"


@pytest.mark.parametrize(
    "changes",
    [
        {"compute_capability": "12.0"},
        {"product": "tensorrt"},
        {"module": "embed_tokens"},
        {"onnx": {"tensorrt-rtx/decoder.onnx": "1" * 64}},
        {"onnx": {"tensorrt-rtx/decoder.onnx": "0" * 64, "tensorrt-rtx/x.data": "0" * 64}},
    ],
)
def test_plans_of_other_gpus_products_and_graphs_lie_side_by_side(
    cache: PlanCache, build: Builder, changes: dict[str, Any]
) -> None:
    cache.get(facts(), build)
    assert cache.get(facts(**changes), build).data == b"plan 2"
    assert cache.get(facts(), build).data == b"plan 1"


def test_a_plan_of_another_gpu_under_the_right_name_is_built_again(
    cache: PlanCache, build: Builder
) -> None:
    cache.get(facts(), build)
    sidecar = only(cache, ".json")
    noted = json.loads(sidecar.read_bytes())
    noted["facts"]["compute_capability"] = "12.0"
    sidecar.write_text(json.dumps(noted))
    stored = cache.get(facts(), build)
    assert stored.data == b"plan 2"
    assert "compute_capability 12.0, and this is 8.9" in stored.reason


@pytest.mark.parametrize("damaged", [b"plan 2", b"plan 1 and more", b"", b"PLAN 1"])
def test_a_plan_that_was_changed_is_never_given_out(
    cache: PlanCache, build: Builder, damaged: bytes
) -> None:
    cache.get(facts(), build)
    only(cache, ".plan").write_bytes(damaged)
    stored = cache.get(facts(), build)
    assert (stored.data, stored.fresh) == (b"plan 2", True)
    assert "damaged or was changed" in stored.reason


@pytest.mark.parametrize("noted", [b"", b"{}", b"[", b"null", b'{"facts": 1}', b"\xff"])
def test_a_note_that_cannot_be_read_means_to_build_again(
    cache: PlanCache, build: Builder, noted: bytes
) -> None:
    cache.get(facts(), build)
    only(cache, ".json").write_bytes(noted)
    assert cache.get(facts(), build).data == b"plan 2"


def test_a_plan_without_a_note_and_a_note_without_a_plan_mean_to_build_again(
    cache: PlanCache, build: Builder
) -> None:
    cache.get(facts(), build)
    only(cache, ".json").unlink()
    assert cache.get(facts(), build).data == b"plan 2"
    only(cache, ".plan").unlink()
    assert cache.get(facts(), build).data == b"plan 3"


@posix
@pytest.mark.parametrize("suffix", [".plan", ".json"])
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_to_is_refused(
    cache: PlanCache, build: Builder, suffix: str, mode: int
) -> None:
    cache.get(facts(), build)
    only(cache, suffix).chmod(mode)
    with pytest.raises(EngineError, match="can be written to by others") as caught:
        cache.get(facts(), build)
    assert str(only(cache, suffix)) in str(caught.value)
    assert CACHE_VARIABLE in str(caught.value)
    assert build.built == 1


@posix
@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_a_file_of_somebody_else_is_refused(
    cache: PlanCache, build: Builder, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get(facts(), build)
    real = os.fstat

    def somebody_else(handle: int) -> os.stat_result:
        status = list(real(handle))
        if Path(f"/proc/self/fd/{handle}").readlink().suffix == suffix:
            status[stat.ST_UID] += 1
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", somebody_else)
    with pytest.raises(EngineError, match="belongs to user"):
        cache.get(facts(), build)


@posix
@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_a_link_is_refused(cache: PlanCache, build: Builder, suffix: str, tmp_path: Path) -> None:
    cache.get(facts(), build)
    path = only(cache, suffix)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(EngineError, match="cannot be read or is a link"):
        cache.get(facts(), build)


@posix
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(EngineError, match="can be written to by others"):
        PlanCache(folder)


@posix
def test_a_folder_of_somebody_else_or_a_link_to_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(EngineError, match="is a link"):
        PlanCache(tmp_path / "link")
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / "real").stat().st_uid + 1)
    with pytest.raises(EngineError, match="belongs to user"):
        PlanCache(tmp_path / "real")


@posix
def test_what_is_written_is_for_its_owner_alone_whatever_the_umask(
    tmp_path: Path, build: Builder
) -> None:
    before = os.umask(0)
    try:
        cache = PlanCache(tmp_path / "plans")
        cache.get(facts(), build)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.folder.iterdir()} == {0o600}


def test_a_build_that_fails_leaves_the_old_plan(cache: PlanCache, build: Builder) -> None:
    cache.get(facts(), build)

    def fail() -> BuiltPlan:
        raise EngineError("no. Never mind.")

    with pytest.raises(EngineError, match=r"^no\."):
        cache.get(facts(version="2"), fail)
    assert cache.get(facts(), build).data == b"plan 1"


def test_a_full_disk_leaves_no_half_plan(
    cache: PlanCache, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match="No space left on device"):
        cache.get(facts(), build)
    assert not list(cache.folder.iterdir())


def test_a_verified_plan_stays_verified_until_it_is_built_again(
    cache: PlanCache, build: Builder
) -> None:
    cache.get(facts(), build)
    cache.mark_verified(facts())
    assert cache.get(facts(), build).verified
    assert not cache.get(facts(driver="14.0"), build).verified


def test_a_discarded_plan_is_gone(cache: PlanCache, build: Builder) -> None:
    cache.get(facts(), build)
    cache.discard(facts())
    assert not list(cache.folder.iterdir())
    cache.discard(facts())


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({CACHE_VARIABLE: "/own"}, "/own/plans"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/laco-deploy/plans"),
        ({}, "/home/me/.cache/laco-deploy/plans"),
    ],
)
@pytest.mark.skipif("sys.platform != 'linux'", reason="folders of Linux")
def test_where_plans_are_kept(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert plan_folder() == Path(expected)
