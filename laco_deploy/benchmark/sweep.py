"""A benchmark over options of the export: which bundles it takes, and which of them are there.

Every point of a sweep is a bundle of its own in a cache, found again by what went into it. PyTorch
is only imported where one is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import laco_deploy
from laco_deploy.benchmark.fit import AFTER_BLOCK
from laco_deploy.benchmark.job import Entrant, Progress
from laco_deploy.benchmark.schema import BASELINE
from laco_deploy.benchmark.schema_machine import Sweep
from laco_runtimes.bundle import Bundle, open_bundle
from laco_runtimes.engines import ENGINES
from laco_runtimes.errors import (
    ArgumentError,
    BundleError,
    CheckpointError,
    CheckpointNotFoundError,
    LacoError,
)
from laco_runtimes.manifest import FORMAT_VERSION, MAIN_VARIANT
from laco_runtimes.plans import plan_folder

AXES: Mapping[str, str] = {
    AFTER_BLOCK: "block that the merger follows; its weights are moved, for latency only",
    "precision": "of both halves of the model, or a preset",
    "vision_precision": "of the vision encoder, instead",
    "llm_precision": "of the language model, instead",
}
"""What can be swept over."""

SWEEP_BASELINES = (BASELINE, "downsampled")
"""Exported beside the first place of the merger in every precision. `external` is the last place:
`after_block` = number of blocks."""

READ_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "model.safetensors.index.json",
    "*.safetensors",
)
"""Files of a checkpoint that an export reads."""

KEY_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepJob:
    """What to export and compare."""

    checkpoint: Path
    target: str
    axes: Mapping[str, tuple[str, ...]]
    """Values of each option, as `parse_axes` gives them; empty for the checkpoint as it is."""
    cache: Path | None = None
    """Folder of the bundles; None for `default_cache()`."""
    baselines: tuple[str, ...] = SWEEP_BASELINES


@dataclass(frozen=True, slots=True)
class Point:
    """One bundle of a sweep."""

    options: Mapping[str, str]
    """Value of each axis."""
    baselines: tuple[str, ...]

    @property
    def label(self) -> str:
        """`after_block=2 precision=int8`; the name of the main variant where nothing is swept."""
        return said(self.options) or MAIN_VARIANT


@dataclass(frozen=True, slots=True)
class PreparedSweep:
    """Bundles of a sweep, ready to be measured in one process."""

    entrants: tuple[Entrant, ...]
    """`uncompressed` last."""
    sweep: Sweep
    """For `settings.sweep` of the report."""
    failed: dict[str, str]
    """Points and baselines that there are no bundles of, and why."""


def parse_axes(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read `after_block=1,2,4` and the like.

    Raises:
        ArgumentError: no such option, an option twice, no value, or a value twice.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if name not in AXES:
            raise ArgumentError(
                f"a sweep over {name!r} is not possible. Choose from: {', '.join(AXES)}."
            )
        values = tuple(part.strip() for part in rest.split(","))
        if not equals or "" in values or len(set(values)) != len(values):
            raise ArgumentError(
                f"'{text}' does not name different values. Write it as {name}=1,2,4."
            )
        if name in axes:
            raise ArgumentError(f"{name} is swept twice. Give all of its values at once.")
        if name == AFTER_BLOCK and not all(value.isdecimal() for value in values):
            raise ArgumentError(f"'{text}' has a block that is no number. Write {name}=1,2,4.")
        axes[name] = values
    return axes


def default_cache() -> Path:
    """Folder of this user for bundles of sweeps."""
    return plan_folder().with_name("bench")


def prepare_sweep(
    job: SweepJob, progress: Progress = lambda what, done, total: None
) -> PreparedSweep:
    """Find every bundle of a sweep in the cache, or export it into that.

    A point that cannot be exported leaves the others whole.

    Raises:
        ArgumentError: an unknown target, or a place that the merger cannot take.
        CheckpointNotFoundError, CheckpointError: no checkpoint, or one that cannot be read.
        LacoError: what `export_checkpoint` raises, where no point at all could be exported.
    """
    if job.target not in ENGINES:
        raise ArgumentError(f"unknown target {job.target!r}. Known: {', '.join(sorted(ENGINES))}.")
    trained = _trained_place(job)
    identity = checkpoint_sha256(job.checkpoint)
    points = points_of(job)
    entrants: list[Entrant] = []
    failed: dict[str, str] = {}
    errors: list[LacoError] = []
    for number, point in enumerate(points, 1):
        name = f"bundle {number} of {len(points)}"

        def advance(stage: str, done: int, total: int, name: str = name) -> None:
            progress(name, done, total)

        try:
            bundle = _bundle(job, point, identity, advance)
        except LacoError as error:
            failed[point.label] = str(error)
            errors.append(error)
            continue
        entrants += _entrants(bundle, point, trained, failed)
    if not entrants:
        raise errors[0]
    return PreparedSweep(
        entrants=_with_baselines(entrants),
        sweep=Sweep(
            checkpoint=job.checkpoint.resolve().name,
            checkpoint_sha256=identity,
            target=job.target,
            axes=dict(job.axes),
            options={"baselines": ",".join(job.baselines)},
        ),
        failed=failed,
    )


def points_of(job: SweepJob) -> list[Point]:
    """All combinations of the axes; the baselines belong to the first of those that differ in the
    place of the merger alone."""
    points, seen = [], set[str]()
    for values in product(*job.axes.values()):
        options = dict(zip(job.axes, values, strict=True))
        rest = said(_without_place(options))
        points.append(Point(options, () if rest in seen else job.baselines))
        seen.add(rest)
    return points


def said(options: Mapping[str, str]) -> str:
    """Options in words."""
    return " ".join(f"{name}={value}" for name, value in options.items())


def checkpoint_sha256(checkpoint: Path) -> str:
    """Hash of all files that an export reads, and of their names.

    Raises:
        CheckpointNotFoundError: no `config.json` there.
    """
    if not (checkpoint / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"'{checkpoint}' is no checkpoint: there is no config.json in it. "
            "Give the folder that `laco train` wrote."
        )
    files = {path.name: path for pattern in READ_FILES for path in checkpoint.glob(pattern)}
    total = hashlib.sha256()
    for name in sorted(files):
        with files[name].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def point_key(job: SweepJob, point: Point, identity: str) -> str:
    """Hash of all that the bundle of a point depends on: checkpoint, options and versions."""
    parts = {
        "checkpoint": identity,
        "target": job.target,
        "options": dict(point.options),
        "baselines": list(point.baselines),
        "versions": {
            "laco_deploy": laco_deploy.__version__,
            "format": str(FORMAT_VERSION),
            ENGINES[job.target].package: _version(ENGINES[job.target].package),
        },
    }
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def _bundle(job: SweepJob, point: Point, identity: str, progress: Progress) -> Bundle:
    """From the cache; one that is damaged is exported again."""
    cache = job.cache or default_cache()
    folder = cache / f"{job.target}-{point_key(job, point, identity)}"
    try:
        return open_bundle(folder)
    except BundleError:
        from laco_deploy.benchmark.sweep_export import export_point

        asked = point.options, point.baselines
        export_point(job.checkpoint, folder, job.target, *asked, progress=progress)
        return open_bundle(folder)


def _entrants(
    bundle: Bundle, point: Point, trained: str | None, failed: dict[str, str]
) -> list[Entrant]:
    """The variants of one point; what they do not depend on is not in their names."""
    shared = _without_place(point.options)
    moved = point.options.get(AFTER_BLOCK, trained) != trained
    found = []
    for variant in bundle.manifest.variants:
        main = variant.name == MAIN_VARIANT
        found.append(
            Entrant(
                name=point.label if main else _named(variant.name, shared),
                bundle=bundle,
                bundle_name=point.label,
                variant=variant.model_copy(update={"latency_only": moved}) if main else variant,
                point=dict(point.options) if main else shared,
            )
        )
    held = {variant.name for variant in bundle.manifest.variants}
    for missing in (name for name in point.baselines if name not in held):
        failed[_named(missing, shared)] = "this model has no such baseline"
    return found


def _named(variant: str, options: Mapping[str, str]) -> str:
    return " ".join([variant, said(options)]).strip()


def _with_baselines(entrants: list[Entrant]) -> tuple[Entrant, ...]:
    """Speed-ups are over the uncompressed model in the same precision.

    Places stand together, then other baselines, then that one.
    """
    plain = {
        said(entrant.point): entrant.name
        for entrant in entrants
        if entrant.variant.name == BASELINE
    }
    found = (
        replace(entrant, baseline=plain.get(said(_without_place(entrant.point))))
        for entrant in entrants
    )
    return tuple(sorted(found, key=_rank))


def _rank(entrant: Entrant) -> tuple[bool, bool]:
    return entrant.variant.name == BASELINE, entrant.variant.name != MAIN_VARIANT


def _without_place(options: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if name != AFTER_BLOCK}


def _trained_place(job: SweepJob) -> str | None:
    """Block that the merger follows in the checkpoint; None where places are not swept.

    Raises:
        ArgumentError: a place outside the encoder, or not one merger to move.
        CheckpointError: a `config.json` that cannot be read.
    """
    if AFTER_BLOCK not in job.axes:
        return None
    try:
        text = (job.checkpoint / "config.json").read_text(encoding="utf-8")
        config: Any = json.loads(text)
        blocks = int(config["vision_config"]["num_hidden_layers"])
        places = [str(int(one["after_block"])) for one in config["mergers"]]
    except FileNotFoundError:
        return None  # said when its files are read
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"config.json of '{job.checkpoint}' does not tell its blocks and mergers. "
            "Copy it from the original checkpoint."
        ) from error
    if len(places) != 1:
        raise ArgumentError(
            f"a sweep over {AFTER_BLOCK} moves one merger, and the checkpoint has {len(places)}. "
            "Leave the option out, or make a checkpoint with one merger with `laco init`."
        )
    for value in job.axes[AFTER_BLOCK]:
        if not 1 <= int(value) <= blocks:
            raise ArgumentError(
                f"{AFTER_BLOCK} cannot be {value}: the encoder has {blocks} blocks. "
                f"Choose 1 to {blocks}."
            )
    return places[0]


@cache  # reading what is installed takes half a second
def _version(package: str) -> str:
    for name in metadata.packages_distributions().get(package, [package.replace("_", "-")]):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "none"


__all__ = [
    "AXES",
    "SWEEP_BASELINES",
    "Point",
    "PreparedSweep",
    "SweepJob",
    "checkpoint_sha256",
    "default_cache",
    "parse_axes",
    "point_key",
    "points_of",
    "prepare_sweep",
    "said",
]
