"""Where a stage keeps its work until its checkpoint is written: a folder beside the output."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from laco_runtimes.errors import CheckpointError

RECORD_FOLDER = "training"
"""In the checkpoint: the settings, logs and plots of the run that wrote it."""
STAGE_FILE = "stage.yaml"
LOG_FILE, BROKEN_FILE, SAMPLES_FILE = "log.jsonl", "broken.jsonl", "samples.jsonl"
SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`<out>.run`: settings, logs, plots and snapshots of a run that is not finished.

    When it is, everything but the snapshots moves into the checkpoint, and the folder goes.
    """

    out: Path

    @property
    def path(self) -> Path:
        """The folder."""
        return self.out.with_name(f"{self.out.name}.run")

    @property
    def record(self) -> Path:
        """The same files in the finished checkpoint."""
        return self.out / RECORD_FOLDER

    @property
    def log(self) -> Path:
        """Losses, rates and scores, a line of JSON per entry."""
        return self.path / LOG_FILE

    @property
    def broken(self) -> Path:
        """Samples that were skipped."""
        return self.path / BROKEN_FILE

    @property
    def samples(self) -> Path:
        """Sample answers."""
        return self.path / SAMPLES_FILE

    def is_finished(self, settings: str, may_differ: Collection[str] = ()) -> bool:
        """Whether `out` is the checkpoint of a run with these settings.

        Args:
            settings: as in `stage.yaml`.
            may_differ: names of those that do not count.

        Raises:
            CheckpointError: it is that of another run.
        """
        record = self.record / STAGE_FILE
        if self.path.exists() or not record.is_file():
            return False
        if differences := _differences(record, settings, may_differ):
            raise CheckpointError(
                f"'{self.out}' was trained with other settings: {differences}. "
                "Choose another folder, or train anew without --resume."
            )
        return True

    def check(self, *, resume: bool) -> None:
        """Whether a run may begin here, or go on.

        Raises:
            CheckpointError: it holds an unfinished run, and `resume` was not asked for.
        """
        if not resume and any((self.path / SNAPSHOTS).glob("step-*")):
            raise CheckpointError(
                f"'{self.path}' holds a run that is not finished. "
                "Add --resume to go on with it, or remove the folder."
            )

    def copy_record(self, checkpoint: Path) -> None:
        """Copy everything but the snapshots into an unfinished checkpoint folder."""
        shutil.copytree(
            self.path, checkpoint / RECORD_FOLDER, ignore=shutil.ignore_patterns(SNAPSHOTS, ".*")
        )

    def remove(self) -> None:
        """The checkpoint is written: snapshots are of no more use."""
        shutil.rmtree(self.path, ignore_errors=True)


def _differences(record: Path, settings: str, may_differ: Collection[str]) -> str:
    was, now = (
        [line for line in text.splitlines() if line.partition(":")[0] not in may_differ]
        for text in (record.read_text(encoding="utf-8"), settings)
    )
    return "; ".join(line for line in difflib.ndiff(was, now) if line[:2] in ("- ", "+ "))


__all__ = [
    "BROKEN_FILE",
    "LOG_FILE",
    "RECORD_FOLDER",
    "SAMPLES_FILE",
    "SNAPSHOTS",
    "STAGE_FILE",
    "RunFolder",
]
