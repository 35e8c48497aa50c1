"""A snapshot folder is whole or not there, wherever the process died while writing it."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from laco_deploy.training.snapshots import folder, newest_snapshot, snapshots
from laco_deploy.training.snapshots.folder import claimed
from laco_runtimes.errors import CheckpointError

FILES = ("model.safetensors", "optimizer.safetensors", "trainer_state.json")


def write_snapshot(root: Path, step: int, keep: int | None = None) -> None:
    partial = folder.unfinished(root, step)
    folder.begin(partial)
    for name in FILES[:2]:
        folder.write_tensors(partial / name, {"weight": torch.full((5,), float(step))})
    folder.write_json(partial / FILES[2], {"step": step})
    folder.finish(partial, keep=keep)


def holds(root: Path, step: int) -> bool:
    snapshot = newest_snapshot(root)
    return (
        snapshot is not None
        and snapshot.step == step
        and snapshot.read_json(FILES[2]) == {"step": step}
        and all(snapshot.read_tensors(name)["weight"].eq(step).all() for name in FILES[:2])
    )


class Died(BaseException):
    """Like a kill: nothing catches it, and no clean-up stands between."""


class CrashPoints:
    """Counts what is done to files below `root`; dies before the operation asked for.

    Python tells an audit hook of each open, mkdir, rename, remove and so on. A hook stays for the
    life of the process, so there is one, and it sleeps unless `watching`.
    """

    root = ""
    left: int | None = None
    seen = 0
    _installed = False

    @classmethod
    @contextmanager
    def watching(cls, root: Path, die_before: int | None = None) -> Iterator[None]:
        if not cls._installed:
            sys.addaudithook(cls._hook)
            cls._installed = True
        cls.root, cls.left, cls.seen = str(root), die_before, 0
        try:
            yield
        finally:
            cls.root = ""

    @classmethod
    def _hook(cls, event: str, args: tuple[object, ...]) -> None:
        if not cls.root or not (event == "open" or event.startswith(("os.", "shutil."))):
            return
        if not any(str(arg).startswith(cls.root) for arg in args):
            return
        cls.seen += 1
        if cls.seen == cls.left:
            cls.root = ""
            raise Died(event)


def count_operations(root: Path, step: int, keep: int) -> int:
    with CrashPoints.watching(root):
        write_snapshot(root, step, keep)
    return CrashPoints.seen


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step again"])
def test_a_crash_before_any_file_operation_leaves_a_whole_snapshot(
    tmp_path: Path, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # slow, and no kill undoes it
    before = tmp_path / "before"
    for step in (1, 2):
        write_snapshot(before, step)
    step = 2 if again else 3
    shutil.copytree(before, tmp_path / "dry")
    operations = count_operations(tmp_path / "dry", step, keep=2)
    assert operations > 20

    taken = set()
    for point in range(1, operations + 1):
        root = tmp_path / f"run-{point}"
        shutil.copytree(before, root)
        with pytest.raises(Died), CrashPoints.watching(root, die_before=point):
            write_snapshot(root, step, keep=2)
        found = newest_snapshot(root)
        assert found is not None
        assert holds(root, found.step)
        assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []
        taken.add(found.step)
    assert taken == {2, step}


def test_a_crash_while_sweeping_loses_nothing(tmp_path: Path) -> None:
    """Killed, resumed, and killed again in the first moment of resuming."""
    sealed = tmp_path / "sealed"
    write_snapshot(sealed, 1)
    write_snapshot(sealed, 2)
    (sealed / "step-00000002").rename(sealed / ".step-00000002.partial")
    folder.begin(folder.unfinished(sealed, 3))
    shutil.copytree(sealed, tmp_path / "dry")
    with CrashPoints.watching(tmp_path / "dry"):
        assert newest_snapshot(tmp_path / "dry") is not None
    for point in range(1, CrashPoints.seen + 1):
        root = tmp_path / f"run-{point}"
        shutil.copytree(sealed, root)
        with pytest.raises(Died), CrashPoints.watching(root, die_before=point):
            newest_snapshot(root)
        assert holds(root, 2)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        write_snapshot(tmp_path, step, keep=2)
    assert [snapshot.step for snapshot in snapshots(tmp_path)] == [15, 20]


def test_no_folder_is_no_snapshot(tmp_path: Path) -> None:
    assert newest_snapshot(tmp_path / "nowhere") is None
    assert newest_snapshot(tmp_path) is None


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])  # JSON ends in a newline


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a missing file": Path.unlink,
    "a file cut short": cut_short,
}


@pytest.mark.parametrize("name", [*FILES, "complete.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_snapshot_is_set_aside_and_the_one_before_used(
    tmp_path: Path, damage: object, name: str
) -> None:
    write_snapshot(tmp_path, 5)
    write_snapshot(tmp_path, 10)
    damage(tmp_path / "step-00000010" / name)  # type: ignore[operator]
    said: list[str] = []
    snapshot = newest_snapshot(tmp_path, said.append)
    assert snapshot is not None
    assert snapshot.step == 5
    assert len(said) == 1
    assert "step-00000010" in said[0]
    assert "step 5 is used" in said[0]
    assert (tmp_path / "step-00000010.damaged").is_dir()
    assert newest_snapshot(tmp_path, said.append) == snapshot
    assert len(said) == 1


def test_a_run_does_not_start_over_because_all_snapshots_are_damaged(tmp_path: Path) -> None:
    for step in (5, 10):
        write_snapshot(tmp_path, step)
        flip_a_bit(tmp_path / f"step-{step:08d}" / FILES[0])
    with pytest.raises(CheckpointError, match=r"none of the 2 snapshots .* model\.safetensors has"):
        newest_snapshot(tmp_path)
    assert len(snapshots(tmp_path)) == 2


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname"])
def test_a_seal_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    write_snapshot(tmp_path, 1)
    seal = tmp_path / "step-00000001" / "complete.json"
    values = json.loads(seal.read_text())
    values["files"][name] = {"bytes": 0, "sha256": ""}
    seal.write_text(json.dumps(values))
    assert folder.find_fault(seal.parent) == f"{name} is missing"


def test_state_that_json_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        folder.write_json(tmp_path / "scheduler.json", {"when": object()})


def test_a_full_disk_is_said_and_leaves_the_snapshots_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshot(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left"):
        write_snapshot(tmp_path, 2)
    assert holds(tmp_path, 1)


def test_files_in_folders_are_sealed_too(tmp_path: Path) -> None:
    """A processor with several chat templates writes a folder of them."""
    partial = folder.unfinished(tmp_path, 1)
    folder.begin(partial)
    (partial / "templates").mkdir()
    folder.write_json(partial / "templates" / "one.json", {})
    path = folder.finish(partial)
    assert folder.find_fault(path) is None
    (path / "templates" / "one.json").write_text("[]")
    assert folder.find_fault(path) == "templates/one.json has 2 bytes, not 3"


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("claimed", flush=True)
    sys.stdin.read()
"""


def other_process(root: Path) -> subprocess.Popen[bytes]:
    """Takes the lock if it can, and holds it until it is killed."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(root / ".lock")]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    with claimed(tmp_path), other_process(tmp_path) as other:
        _, said = other.communicate()
        assert b"BlockingIOError" in said
    with other_process(tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"claimed\n"
        with pytest.raises(CheckpointError, match="another process trains"), claimed(tmp_path):
            pass
        other.kill()
    with claimed(tmp_path):  # the lock went with the process
        pass
