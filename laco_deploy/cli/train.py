"""`laco train`."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from laco_deploy.terminal import say
from laco_runtimes.errors import MissingPackageError


def train(
    *,
    recipe: Literal["tiny", "micro"],
    out: Path,
    data: Path | None = None,
    seed: Annotated[int, Parameter(help="Seed of the data, the weights and the order.")] = 0,
    steps: int | None = None,
) -> None:
    """Train a small LaCo model from scratch and write a checkpoint folder.

    Example: `laco train --recipe tiny --out runs/tiny`

    Parameters
    ----------
    recipe
        `tiny` makes the shipped checkpoint (at most an hour on 2 cores); `micro` takes a minute.
    out
        Checkpoint folder to write.
    data
        Data set folder; made when it is not there. Default: data/ and the name of the recipe.
    steps
        Training steps, other than the recipe's.
    """
    for package in ("torch", "transformers", "accelerate", "sklearn", "matplotlib"):
        if find_spec(package) is None:
            raise MissingPackageError(package, "train")

    from laco_deploy.training.card import summarise
    from laco_deploy.training.progress import RichProgress
    from laco_deploy.training.recipes import RECIPES
    from laco_deploy.training.train import train as run

    words = ["laco", "train", "--recipe", recipe, "--out", str(out)]
    words += ["--data", str(data)] if data is not None else []
    words += ["--seed", str(seed)] if seed else []
    words += ["--steps", str(steps)] if steps is not None else []
    result = run(
        RECIPES[recipe],
        out=out,
        data=data or Path("data") / recipe,
        seed=seed,
        steps=steps,
        command=shlex.join(words),
        progress=RichProgress(),
    )
    table = Table("group", "right", "of", "accuracy")
    for score in summarise(result.scores):
        table.add_row(score.group, str(score.correct), str(score.total), f"{score.accuracy:.1%}")
    Console().print(table)
    say(f"{result.minutes:.1f} minutes of training. The checkpoint is in {result.path}")


__all__ = ["train"]
