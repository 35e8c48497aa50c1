"""A bundle made in a forked child, so that it can be killed or fail and torch is imported once."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from laco_runtimes import workfolder
from laco_runtimes.bundle import open_bundle, read_manifest, replace_folder, seal_bundle
from laco_runtimes.errors import DiskFullError
from laco_runtimes.manifest import MANIFEST_NAME, BundleFacts
from laco_runtimes.workfolder import work_folder

Maker = Callable[[Path, Path, Path], None]
"""Makes a bundle at the first path, of a checkpoint and a finished bundle of it."""

DONE, DISK_FULL, FAILED = 0, 10, 11


def export(out: Path, checkpoint: Path, bundle: Path) -> None:
    """The real thing, but for the graphs, which are taken over from `bundle`."""
    from tests.bundles import export_random_bundle

    target = read_manifest(bundle).target
    # Let it begin without room enough: it is the writes that must fail here.
    with mock.patch.object(workfolder, "check_room", return_value=None):
        export_random_bundle(checkpoint, out, target, graphs_of=bundle)


def seal_and_replace(out: Path, checkpoint: Path, bundle: Path) -> None:
    """The end of an export alone: no torch, no engine."""
    with work_folder(out.resolve()) as folder:
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        (folder / MANIFEST_NAME).unlink()
        facts = read_manifest(bundle).model_dump(exclude={"files"})
        seal_bundle(folder, BundleFacts(**facts))
        open_bundle(folder)
        replace_folder(folder, out)


MAKERS: dict[str, Maker] = {"export": export, "seal": seal_and_replace}


def start(maker: str, out: Path, checkpoint: Path, bundle: Path, log: Path) -> int:
    """Fork a child that makes `out` and ends with one of the codes above; its process id."""
    if child := os.fork():
        return child
    code = FAILED
    os.setpgid(0, 0)
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
        MAKERS[maker](out, checkpoint, bundle)
        code = DONE
    except DiskFullError as error:
        print(error, flush=True)
        code = DISK_FULL
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
