"""`laco data`."""

from __future__ import annotations

import json as json_module
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter
from rich.table import Table

from laco_deploy.terminal import say, show, stage_bar
from laco_runtimes.errors import (
    ArgumentError,
    CheckpointNotFoundError,
    DataError,
    MissingPackageError,
)

if TYPE_CHECKING:
    from laco_deploy.training.corpus.chat import ChatOptions
    from laco_deploy.training.corpus.check import CheckReport
    from laco_deploy.training.corpus.corpus import Corpus
    from laco_deploy.training.corpus.training_set import TrainingSet

MAX_WORKERS = 8
DEFAULT_MAX_LENGTH = 32768


def check(
    path: Path,
    /,
    *,
    ckpt: Path | None = None,
    style: Literal["chat", "plain"] = "chat",
    image_mode: Literal["square", "anyres"] = "square",
    max_length: int | None = None,
    image_root: Path | None = None,
    workers: Annotated[int | None, Parameter(help="Processes. Default: one per core.")] = None,
    show: Annotated[int, Parameter(help="Broken samples that are listed.")] = 20,
    json: bool = False,
) -> None:
    """Read and decode every sample, and say what training would skip.

    Example: `laco data check mixture.yaml --ckpt runs/start --max-length 32768`

    Ends with exit code 1 where a sample is broken.

    Parameters
    ----------
    path
        Mixture file (YAML), data file (.json, .jsonl, .parquet, .tar) or folder of shards.
    ckpt
        Checkpoint to count tokens with. Without it lengths are not looked at.
    style
        Of the stage: `plain` (captions) or `chat`. Needs --ckpt.
    image_mode
        Of the stage. Needs --ckpt.
    max_length
        Greatest length in tokens, visual ones included. Needs --ckpt. Default: 32768.
    image_root
        Folder that paths of images and videos start from.
    json
        Print the report as JSON instead.
    """
    for package in ("torch", "transformers", "pyarrow", "yaml", "cv2"):
        if find_spec(package) is None:
            raise MissingPackageError(package, "train")
    if ckpt is None and (max_length is not None or (style, image_mode) != ("chat", "square")):
        raise ArgumentError(
            "without a checkpoint there are no tokens to count. "
            "Add --ckpt, or leave out --max-length, --style and --image-mode."
        )

    for name, value in (("--workers", workers or 0), ("--show", show)):
        if value < 0:
            raise ArgumentError(f"{name} is {value}. Give 0 or more.")

    from laco_deploy.training.corpus.chat import ChatOptions
    from laco_deploy.training.corpus.check import check as run
    from laco_deploy.training.corpus.check import check_entries
    from laco_deploy.training.corpus.corpus import Corpus
    from laco_deploy.training.corpus.mixture import read_mixture

    length = DEFAULT_MAX_LENGTH if max_length is None else max_length
    options = ChatOptions(style=style, image_mode=image_mode, max_length=length)
    corpus = Corpus(check_entries(read_mixture(path), image_root))
    processes = min(os.cpu_count() or 1, MAX_WORKERS) if workers is None else workers
    with stage_bar() as progress:
        report = run(
            corpus,
            None if ckpt is None else _training_set(corpus, ckpt, options),
            workers=processes,
            show=show,
            progress=progress,
        )
    if json:
        print(json_module.dumps(report.to_json(), indent=2))
    else:
        _print(report)
    if report.broken:
        raise DataError(
            f"{report.broken} of {report.samples} samples are broken, and training would skip "
            "them. Mend them or take them out."
        )


def _training_set(corpus: Corpus, ckpt: Path, options: ChatOptions) -> TrainingSet:
    from laco_deploy.model import LacoProcessor
    from laco_deploy.model.checkpoint import read_config
    from laco_deploy.training.corpus.training_set import TrainingSet

    if not (ckpt / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"'{ckpt}' holds no config.json. Name the folder of a checkpoint."
        )
    read_config(ckpt)  # its errors name what is wrong with the folder
    processor = LacoProcessor.from_pretrained(ckpt, local_files_only=True)
    return TrainingSet(corpus, processor, options)


def _print(report: CheckReport) -> None:
    table = Table("data set", "samples", "images", "videos", "text only", "broken")
    for name, count in sorted(report.sources.items()):
        columns = (count.samples, count.images, count.videos, count.text_only, count.broken)
        table.add_row(name.replace("[", r"\["), *map(str, columns))
    show(table)
    say("by kind of file: " + ", ".join(f"{kind} {n}" for kind, n in report.kinds.items()))
    if report.longest:
        say(f"longest sample: {report.longest} tokens; {report.cut} samples are cut off at the end")
    say(
        f"duplicates: {report.same_id} with the id and {report.same_content} with the contents "
        "of another sample"
    )
    if report.ignored:
        say(f"ignored: {report.ignored} members of shards of kinds that are not read")
    for fault, number in sorted(report.faults.items()):
        say(f"{fault.replace('_', ' ')}: {number}")
    for broken in report.offenders:
        say(f"  {broken.source}, {broken.name}: {broken.reason}")
    if report.broken > len(report.offenders):
        say(f"  and {report.broken - len(report.offenders)} more (--show lists more)")


data = cyclopts.App(name="data", help="Look at training data.")
data.command(check)

__all__ = ["check", "data"]
