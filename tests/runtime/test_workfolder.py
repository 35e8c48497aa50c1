"""What is under work stays out of sight, goes away, and is cleared after a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from laco_runtimes import workfolder
from laco_runtimes.errors import DiskFullError, ExportError
from laco_runtimes.workfolder import LOCK_NAME, clear_leftovers, work_folder

HOLD = """
import sys, time
from pathlib import Path
from laco_runtimes.workfolder import work_folder
with work_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("written")
    print(folder.parent, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def final(tmp_path: Path) -> Path:
    return tmp_path / "engine"


def hold(final: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process at work on `final`, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, final],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_is_empty_hidden_beside_its_place_and_gone_at_the_end(final: Path) -> None:
    with work_folder(final) as folder:
        assert list(folder.iterdir()) == []
        assert folder.parent.parent == final.parent
        assert folder.parent.name.startswith(".engine.")
    assert list(final.parent.iterdir()) == []


def test_a_failure_leaves_nothing_and_passes_through(final: Path) -> None:
    def fail() -> None:
        with work_folder(final) as folder:
            (folder / "half").write_text("written")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(final.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_what_a_killed_process_left_is_removed_by_the_next(final: Path) -> None:
    process, left = hold(final)
    assert (left / "bundle" / "half").exists()
    clear_leftovers(final)
    assert (left / "bundle" / "half").exists()  # its owner lives
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left.exists()
    with work_folder(final) as folder:
        assert not left.exists()
        assert folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_two_at_work_on_one_place_do_not_disturb_each_other(final: Path) -> None:
    with work_folder(final) as one, work_folder(final) as other:
        (one / "file").touch()
        (other / "file").touch()
        assert one != other


@pytest.mark.parametrize("name", [".engine.0123abcd", ".engine.tmp", ".other.0123abcd", "engine"])
def test_folders_without_our_lock_file_are_left_alone(final: Path, name: str) -> None:
    mine = final.parent / name
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    os.utime(mine, (1, 1))
    if name != ".engine.0123abcd":  # of another name: even with the file
        (mine / LOCK_NAME).touch()
    clear_leftovers(final)
    assert (mine / "thesis.tex").exists()


def test_a_folder_that_was_never_locked_goes_when_it_is_old(final: Path) -> None:
    holder = final.parent / ".engine.0123abcd"
    holder.mkdir()
    (holder / f".{LOCK_NAME}").touch()
    clear_leftovers(final)
    assert holder.exists()  # its owner may be about to lock it
    os.utime(holder, (1, 1))
    clear_leftovers(final)
    assert not holder.exists()


def test_a_link_to_a_folder_is_left_alone(final: Path) -> None:
    mine = final.parent / "mine"
    mine.mkdir()
    (mine / LOCK_NAME).touch()
    (final.parent / ".engine.0123abcd").symlink_to(mine)
    clear_leftovers(final)
    assert (mine / LOCK_NAME).exists()


def test_too_little_room_is_said_before_anything_is_written(final: Path) -> None:
    with (
        pytest.raises(DiskFullError, match=r"takes 1000000000000\.0 MB .* Free \d+\.\d MB"),
        work_folder(final, needed_bytes=10**18),
    ):
        raise AssertionError
    assert list(final.parent.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_however_deep_its_error(final: Path, code: int) -> None:
    def fill() -> None:
        with work_folder(final) as folder:
            (folder / "half").write_bytes(bytes(3_000_000))
            try:
                raise OSError(code, "full")
            except OSError as full:
                raise ExportError("OpenVINO cannot write") from full

    with pytest.raises(DiskFullError, match=r"no space left.*Free at least") as error:
        fill()
    assert "3.0 MB were written" in str(error.value)
    assert list(final.parent.iterdir()) == []


def test_an_unnamed_failure_on_a_full_disk_is_put_down_to_the_disk(
    final: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")

    def fail() -> None:
        with work_folder(final):
            monkeypatch.setattr(workfolder.shutil, "disk_usage", lambda path: usage(1, 1, 0))
            raise RuntimeError("basic_ios::clear: iostream error")

    with pytest.raises(DiskFullError, match=r"0\.0 MB are free"):
        fail()


def test_another_failure_keeps_its_name(final: Path) -> None:
    with pytest.raises(ExportError, match="no such operator"), work_folder(final):
        raise ExportError("no such operator. Use another.")
