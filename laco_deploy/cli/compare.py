"""`laco compare`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from laco_deploy.terminal import say
from laco_runtimes.errors import MissingPackageError


def compare(
    *,
    out: Path,
    budget: Literal["full", "micro"] = "full",
    only: str | None = None,
    threads: int = 2,
    report: Annotated[bool, Parameter(negative="")] = False,
    docs: Path | None = None,
) -> None:
    """Train every merger the same way on a tiny model, and say which of the paper's claims hold.

    Stop it whenever you like: the same command goes on with the runs that are missing.

    Example: `laco compare --out runs/compare`

    Parameters
    ----------
    out
        Folder of the comparison: data, the pretrained model, one file per run, the report.
    budget
        `full` is the one of docs/comparison.md (hours on 2 cores); `micro` takes the same path in
        a minute and says nothing about the methods.
    only
        Run only what has this in its name, such as `seed-0` or `token_packer`.
    threads
        Cores to use, by so many processes of one thread.
    report
        Write only the report, from the runs that are there.
    docs
        Where to write the report. Default: the folder `report` in --out.
    """
    for package in ("torch", "transformers", "sklearn", "matplotlib"):
        if find_spec(package) is None:
            raise MissingPackageError(package, "train")

    from laco_deploy.training.compare import BUDGETS, write_report
    from laco_deploy.training.compare import compare as run
    from laco_deploy.training.progress import RichProgress

    chosen = BUDGETS[budget]
    if not report:
        run(chosen, out=out, workers=threads, only=only, progress=RichProgress(), say=say)
    page = write_report(chosen, out, docs or out / "report")
    say(f"The report is in {page}")


__all__ = ["compare"]
