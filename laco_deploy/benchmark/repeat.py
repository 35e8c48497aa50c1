"""A benchmark again, as its own `bench.json` tells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from laco_deploy.benchmark.job import BenchPlan
from laco_deploy.benchmark.read import read_report
from laco_deploy.benchmark.schema import BenchReport
from laco_deploy.benchmark.sweep import SweepJob
from laco_runtimes.errors import ArgumentError
from laco_runtimes.manifest import MANIFEST_NAME


class Repetition:
    """The settings of a report, and where its bundle and picture are now.

    A report holds names and hashes, no folders: what is not named again is looked for under its
    name in the current folder and beside the report, and must have the same hash.

    Args:
        path: the `bench.json`.

    Raises:
        ReportFileError: it cannot be read as one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.report: BenchReport = read_report(path)

    def plan(self, image: Path | None) -> BenchPlan:
        """What was asked for.

        Args:
            image: where the picture is now; None to look for it.

        Raises:
            ArgumentError: the picture is not found, or not the one that was measured.
        """
        settings = self.report.settings
        return BenchPlan(
            image=self._image(image),
            prompt=settings.prompt,
            new_tokens=settings.new_tokens_requested,
            runs=settings.runs,
            warmup=settings.warmup,
            device=settings.device_requested,
            threads=settings.threads,
            memory=settings.fresh,
            energy=settings.energy,
            limits=settings.limits,
            seed=settings.seed,
        )

    def engine(self, given: Path | None) -> Path:
        """Folder of the bundle; one that is `given` may be another one.

        Raises:
            ArgumentError: it was a sweep, or the bundle is not found.
        """
        if self.report.settings.sweep is not None:
            raise ArgumentError(
                f"'{self.path}' is a sweep over a checkpoint. Name its folder with --ckpt."
            )
        if given is not None:
            return given
        name = self.report.bundle.name
        found = self._look_for(name, self.is_same_bundle)
        if found is None:
            raise ArgumentError(
                f"the bundle {name!r} that '{self.path}' measured is not here. "
                "Name its folder: laco bench engine/ --repeat bench.json"
            )
        return found

    def variants(self) -> tuple[str, ...]:
        """Names of the variants that were measured."""
        return tuple(result.variant for result in self.report.results)

    def is_same_bundle(self, folder: Path) -> bool:
        """Whether a folder holds the bundle that was measured."""
        return _sha256(folder / MANIFEST_NAME) == self.report.bundle.manifest_sha256

    def sweep(self, checkpoint: Path, cache: Path | None) -> SweepJob:
        """The same sweep over a checkpoint.

        Raises:
            ArgumentError: it was no sweep.
        """
        sweep = self.report.settings.sweep
        if sweep is None:
            raise ArgumentError(
                f"'{self.path}' is no sweep. Leave --ckpt out, or name the axes with --sweep."
            )
        baselines = sweep.options.get("baselines", "")
        return SweepJob(
            checkpoint=checkpoint,
            target=sweep.target,
            axes=sweep.axes,
            cache=cache,
            baselines=tuple(name for name in baselines.split(",") if name),
        )

    def _image(self, given: Path | None) -> Path | None:
        image = self.report.settings.image
        if image.name is None:
            if given is not None:
                raise ArgumentError(
                    f"'{self.path}' was measured with the synthetic picture. Leave --image out."
                )
            return None
        if given is not None:
            if given.is_file() and _sha256(given) != image.sha256:
                raise ArgumentError(
                    f"'{given}' is not the picture that '{self.path}' was measured with. "
                    "Name that one, or leave --repeat out."
                )
            return given
        found = self._look_for(image.name, lambda path: _sha256(path) == image.sha256)
        if found is None:
            raise ArgumentError(
                f"the picture {image.name!r} that '{self.path}' was measured with is not here. "
                "Name it with --image."
            )
        return found

    def _look_for(self, name: str, right: Callable[[Path], bool]) -> Path | None:
        """A name out of a file is a name and no path."""
        if Path(name).name != name:
            return None
        places = (Path(name), self.path.parent / name)
        return next((place for place in places if right(place)), None)


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


__all__ = ["Repetition"]
