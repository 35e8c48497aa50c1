"""Make a data set: pictures with questions and answers, in the format of LLaVA."""

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from laco_deploy.training.data.folder import new_folder, read_marker, write_json
from laco_deploy.training.data.groups import GROUPS
from laco_deploy.training.data.plan import Job, ask, conversation, picture_rng, plan_split
from laco_deploy.training.data.scene import SPLITS, Split
from laco_runtimes.errors import DataError

FORMAT_VERSION = 2
"""Goes up when the same settings would give other pictures or questions."""

DEFAULT_COUNTS: Mapping[str, int] = {"train": 30_000, "val": 600, "test": 2_100}
MIN_CANVAS = 64
MAX_CANVAS = 1024
_CHUNK = 64

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A finished data set: its folder, and the number of pictures of each split and group."""

    path: Path
    counts: Mapping[str, Mapping[str, int]]


def make_dataset(
    out: Path,
    *,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    canvas: int = 168,
    groups: Sequence[str] = tuple(GROUPS),
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> DatasetSummary:
    """Make a data set in the folder `out`: `train.json`, `val.json`, `test.json` and `images/`.

    Train pictures carry three to six questions (fewer where there is less to ask), val and test
    pictures one. The same settings give the same bytes, whatever the number of workers. The folder
    is made beside `out` and renamed, so `out` is either complete or not there; a folder already
    made with the same settings is reused.
    `dataset.json`, written last, keeps the settings, sources with licences, and versions.

    Args:
        out: Folder to make.
        counts: Pictures of each split; a split left out gets none.
        seed: Of all random choices but the split of the handwritten digits, which never changes.
        canvas: Width and height of the pictures in pixels.
        groups: Names out of `GROUPS`.
        progress: Called with (pictures made, pictures in all).
        workers: Processes that render. More than one needs an importable main module (`spawn`).
        overwrite: Replace a data set that was made with other settings.

    Raises:
        DataError: A setting is out of range, or `out` holds something else.
    """
    settings = _settings(counts, seed, canvas, groups)
    if workers < 1:
        raise DataError(f"{workers} workers cannot make pictures. Ask for 1 or more.")
    out = Path(out)
    marker = read_marker(out, overwrite=overwrite)
    if marker is not None and all(marker.get(key) == value for key, value in settings.items()):
        return DatasetSummary(out, marker["group_counts"])
    if marker is not None and not overwrite:
        raise DataError(
            f"'{out}' holds a data set made with other settings. "
            "Choose another folder, or overwrite this one."
        )
    jobs = [
        job
        for split in SPLITS
        for job in plan_split(seed, split, settings["counts"][split], groups)
    ]
    with new_folder(out) as folder:
        for split in SPLITS:
            (folder / "images" / split).mkdir(parents=True)
        records: dict[Split, list[Record]] = {split: [] for split in SPLITS}
        for job, record in zip(jobs, _render_all(folder, jobs, seed, canvas, workers), strict=True):
            records[job.split].append(record)
            if progress is not None:
                progress(sum(map(len, records.values())), len(jobs))
        for split in SPLITS:
            write_json(folder / f"{split}.json", records[split])
        group_counts: dict[str, Mapping[str, int]] = {
            split: dict(Counter(record["group"] for record in records[split])) for split in SPLITS
        }
        about = {
            "group_counts": group_counts,
            "sources": {group: GROUPS[group].source for group in groups},
            "versions": _versions(),
        }
        write_json(folder / "dataset.json", settings | about)
    return DatasetSummary(out, group_counts)


def _settings(
    counts: Mapping[str, int], seed: int, canvas: int, groups: Sequence[str]
) -> dict[str, Any]:
    """The settings as `dataset.json` keeps them, checked."""
    unknown = [split for split in counts if split not in SPLITS]
    if unknown:
        raise DataError(f"There is no split '{unknown[0]}'. Choose from {', '.join(SPLITS)}.")
    full = {split: counts.get(split, 0) for split in SPLITS}
    if min(full.values()) < 0 or sum(full.values()) == 0:
        raise DataError(
            f"Counts of {dict(counts)} make no data set. "
            "Ask for at least one picture, and of no split for fewer than 0."
        )
    if seed < 0:
        raise DataError(f"Seed {seed} is negative. Use 0 or a positive whole number.")
    if not MIN_CANVAS <= canvas <= MAX_CANVAS:
        raise DataError(
            f"A canvas of {canvas} pixels is out of range. "
            f"Use a whole number from {MIN_CANVAS} to {MAX_CANVAS}."
        )
    strange = [group for group in groups if group not in GROUPS]
    if strange or not groups or len(set(groups)) != len(groups):
        raise DataError(
            f"Groups {list(groups)} cannot be made. "
            f"Name one or more of {', '.join(GROUPS)}, each at most once."
        )
    return {
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "canvas": canvas,
        "groups": list(groups),
        "counts": full,
    }


def _versions() -> dict[str, str]:
    """Versions of the packages the bytes of the pictures depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("matplotlib", "numpy", "pillow", "scikit-learn")}


def _render_all(
    folder: Path, jobs: list[Job], seed: int, canvas: int, workers: int
) -> Iterator[Record]:
    """Records of all jobs in their order; the pictures are in their place by then."""
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    work = partial(_render_chunk, folder, seed, canvas)
    if workers == 1:
        yield from _flatten(map(work, chunks))
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from _flatten(pool.map(work, chunks))


def _flatten(chunks: Iterable[list[Record]]) -> Iterator[Record]:
    for chunk in chunks:
        yield from chunk


def _render_chunk(folder: Path, seed: int, canvas: int, jobs: list[Job]) -> list[Record]:
    """Make some pictures (in a worker process, so this is a plain function of plain data)."""
    records: list[Record] = []
    for job in jobs:
        rng = picture_rng(seed, job)
        scene = GROUPS[job.group].render(rng, job.split, canvas, job.task)
        questions = ask(rng, scene, job)
        scene.image.save(folder / job.name, compress_level=1)
        records.append(
            {
                "id": f"{job.split}-{job.index:06d}",
                "image": job.name,
                "conversations": conversation(rng, questions),
                "group": job.group,
                "task": [question.task for question in questions],
            }
        )
    return records


def load_records(path: Path, split: Split) -> list[Record]:
    """The records of one split of a finished data set, in the format of LLaVA.

    Raises:
        DataError: The folder is not a finished data set.
    """
    if read_marker(path) is None:
        raise DataError(f"'{path}' is not a finished data set. Make it with make_dataset first.")
    records: list[Record] = json.loads((path / f"{split}.json").read_text(encoding="utf-8"))
    return records
