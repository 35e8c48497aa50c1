"""`laco train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Parameter
from rich.table import Table

from laco_deploy.terminal import say, show
from laco_runtimes.errors import ArgumentError, MissingPackageError

if TYPE_CHECKING:
    from laco_deploy.training.stage_chain import Link
    from laco_deploy.training.stage_run import StageResult

Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], Parameter(consume_multiple=True, negative="")]
"""`--data a b`, or the option repeated."""


def train(
    *,
    recipe: Literal["tiny", "micro"] | None = None,
    stage: str | None = None,
    stages: Several[str] = (),
    chain: Path | None = None,
    ckpt: Path | None = None,
    data: Several[Path] = (),
    out: Path,
    resume: Annotated[bool, Parameter(negative="")] = False,
    eval_data: Several[Path] = (),
    set_: Annotated[
        tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative="")
    ] = (),
    micro_batch: int | None = None,
    max_steps: int | None = None,
    eval_every: int | None = None,
    sample_every: int | None = None,
    fsdp: Annotated[bool, Parameter(negative="")] = False,
    log: Literal["tensorboard"] | None = None,
    seed: int | None = None,
    steps: int | None = None,
) -> None:
    """Train: a stage of the paper, several in a row, or a small model from scratch.

    Examples:

    * `laco train --stage stage1 --ckpt ckpt/ --data lcs558k.json --out runs/stage1`
    * `laco train --stages stage1 stage1.5 stage2-si stage2-ov --data a.json b.yaml c.yaml d.yaml
      --ckpt ckpt/ --out runs/paper`
    * `torchrun --nproc-per-node 8 --no-python laco train --stage stage2-ov --fsdp ...`
    * `laco train --recipe tiny --out runs/tiny`

    Ctrl-C and SIGTERM finish the step, save and stop; the same command with `--resume` goes on.

    Parameters
    ----------
    recipe
        From scratch, data included: `tiny` makes the shipped checkpoint (at most an hour on 2
        cores), `micro` takes a minute.
    stage
        stage1, stage1.5, stage2-si, stage2-ov, or a YAML file with settings of your own.
    stages
        Stages to run in a row.
    chain
        YAML file with a list of stages, each with its data.
    ckpt
        Checkpoint to start from; `laco init` makes one.
    data
        Mixture file (YAML), data file (.json, .jsonl, .parquet, .tar) or folder of shards; with
        `--stages` one for each. With `--recipe` the folder to make the data in. Default: data/ and
        the name of the recipe.
    out
        Checkpoint folder to write; of several stages the folder of their checkpoints. What is not
        finished is in a folder beside it that ends in .run.
    resume
        Go on where an interrupted run was. Stages that are finished are passed over.
    eval_data
        Held-out questions: exact match and ANLS are reported at the end and every --eval-every
        steps. With `--stages` one for all, or one for each.
    set_
        Settings over those of the stage: `--set learning_rates.merger=1e-4 precision=fp32`.
    micro_batch
        Samples that a process holds at once; the rest of the global batch is accumulated.
    max_steps
        Stop after so many optimizer steps, with the schedule shrunk to them.
    eval_every
        Optimizer steps between evaluations.
    sample_every
        Optimizer steps between sample answers to held-out questions (samples.jsonl).
    fsdp
        Shard the model over the processes (FSDP2); by default each has all of it (DDP).
    log
        Write a tensorboard log as well; log.jsonl and plots are always there.
    seed
        Of the data, the weights and the order.
    steps
        Training steps, other than the recipe's.
    """
    for package in ("torch", "transformers", "accelerate", "sklearn", "matplotlib", "yaml"):
        if find_spec(package) is None:
            raise MissingPackageError(package, "train")
    chosen = [bool(recipe), bool(stage), bool(stages), bool(chain)]
    if sum(chosen) != 1:
        raise ArgumentError(
            "what to train is not clear. Give one of --stage, --stages, --chain and --recipe."
        )
    settings = {
        "micro_batch": micro_batch,
        "max_steps": max_steps,
        "evaluate_every": eval_every,
        "sample_every": sample_every,
        "fsdp": fsdp or None,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if recipe:
        if ckpt or eval_data or resume or set_ or log or given or len(data) > 1:
            raise ArgumentError(
                "a recipe takes only --out, --data, --seed and --steps. Leave the rest out."
            )
        _train_recipe(recipe, out, data[0] if data else None, seed or 0, steps)
        return
    if steps is not None:
        raise ArgumentError("--steps is of recipes. Give --max-steps.")
    if ckpt is None:
        raise ArgumentError("there is no checkpoint to start from. Give --ckpt.")
    given |= {} if seed is None else {"seed": seed}
    _train_stages(
        _links(stage, stages, chain, data, eval_data, given, set_),
        is_row=stage is None,
        ckpt=ckpt,
        out=out,
        resume=resume,
        tensorboard=log == "tensorboard",
    )


def _links(
    stage: str | None,
    stages: Sequence[str],
    chain: Path | None,
    data: Sequence[Path],
    eval_data: Sequence[Path],
    given: dict[str, Any],
    words: Sequence[str],
) -> tuple[Link, ...]:
    """The stages of the command line, each with its data."""
    from laco_deploy.training.stage import parse_settings
    from laco_deploy.training.stage_chain import Link, read_chain

    overrides = {**given, **parse_settings(words)}
    if chain is not None:
        if data or eval_data:
            raise ArgumentError("a chain names its data itself. Leave --data and --eval-data out.")
        return read_chain(chain, overrides)
    names = [stage] if stage else list(stages)
    if len(data) != len(names):
        raise ArgumentError(
            f"{len(names)} stages need {len(names)} data sets, and {len(data)} are given. "
            "Give --data one for each."
        )
    held_out: list[Path | None] = [*eval_data] or [None]
    if len(held_out) not in (1, len(names)):
        raise ArgumentError(
            f"{len(held_out)} --eval-data do not fit {len(names)} stages. "
            "Give one for all, or one for each."
        )
    held_out *= len(names) // len(held_out)
    return tuple(
        Link(stage=name, data=own, eval_data=questions, overrides=overrides)
        for name, own, questions in zip(names, data, held_out, strict=True)
    )


def _train_stages(
    links: Sequence[Link], *, is_row: bool, ckpt: Path, out: Path, resume: bool, tensorboard: bool
) -> None:
    from accelerate import PartialState

    from laco_deploy.training.progress import RichProgress
    from laco_deploy.training.stage import load_stage
    from laco_deploy.training.stage_chain import chain_jobs, run_chain
    from laco_deploy.training.stage_run import StageJob

    if is_row:
        jobs = chain_jobs(links, checkpoint=ckpt, out=out, resume=resume, tensorboard=tensorboard)
    else:
        (link,) = links
        job = StageJob(
            stage=load_stage(link.stage, link.overrides),
            checkpoint=ckpt,
            data=link.data,
            out=out,
            eval_data=link.eval_data,
            resume=resume,
            tensorboard=tensorboard,
        )
        jobs = (job,)
    results = run_chain(
        jobs, make_progress=RichProgress, report=lambda text: say(text, to_stderr=True)
    )
    processes = PartialState()
    if processes.is_main_process:
        _show(results)
    processes.destroy_process_group()


def _show(results: Sequence[StageResult]) -> None:
    table = Table("checkpoint", "steps", "broken samples", "exact match", "ANLS")
    for result in results:
        scores = [result.scores.get(f"eval_{name}") for name in ("exact_match", "anls")]
        table.add_row(
            str(result.out) if result.finished else "not finished",
            f"{result.step} of {result.steps}",
            str(result.broken),
            *("" if value is None else f"{value:.3f}" for value in scores),
        )
    show(table)
    last = results[-1]
    if last.finished:
        say(f"The checkpoint is in {last.out}, its log and plots in {last.out / 'training'}")


def _train_recipe(recipe: str, out: Path, data: Path | None, seed: int, steps: int | None) -> None:
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
    show(table)
    say(f"{result.minutes:.1f} minutes of training. The checkpoint is in {result.path}")


__all__ = ["train"]
