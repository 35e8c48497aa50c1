"""Stages in a row: each starts from the checkpoint that the one before wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laco_deploy.training.progress import Progress
from laco_deploy.training.stage import load_stage
from laco_deploy.training.stage_run import StageJob, StageResult, run_stage
from laco_runtimes.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A stage of a chain."""

    stage: str | Path
    """Name, or a YAML file."""
    data: Path
    eval_data: Path | None = None
    overrides: Mapping[str, Any] | None = None


class _LinkFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    data: Path
    eval_data: Path | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class _ChainFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    stages: list[_LinkFile] = Field(min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)


def read_chain(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Link, ...]:
    """Read a chain from YAML; relative paths start from its folder.

        set: {precision: bf16}              # for every stage
        stages:
          - {stage: stage1, data: lcs558k.json, set: {micro_batch: 16}}
          - {stage: stage1.5, data: knowledge.yaml, eval_data: held-out.json}

    Args:
        path: the file.
        overrides: over what it sets for a stage, which is over what it sets for all.

    Raises:
        ConfigError: no such file, or one that says something else.
    """
    try:
        chain = _ChainFile(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise ConfigError(
            f"'{path}' cannot be read as a chain. Write a list of stages with stage and data."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"'{path}' at '{place}': {first['msg']}. Change it.") from error
    return tuple(
        Link(
            stage=_beside(path, link.stage),
            data=path.parent / link.data,
            eval_data=path.parent / link.eval_data if link.eval_data else None,
            overrides={**chain.set, **link.set, **(overrides or {})},
        )
        for link in chain.stages
    )


def chain_jobs(
    links: Sequence[Link], *, checkpoint: Path, out: Path, resume: bool, tensorboard: bool = False
) -> tuple[StageJob, ...]:
    """The jobs of a chain; stage n of it writes `<out>/<n>-<name>`.

    Raises:
        CheckpointError: `out` holds something, and `resume` was not asked for.
        ConfigError: a stage that does not exist or a setting that is not possible.
    """
    if not resume and out.exists() and (out.is_file() or any(out.iterdir())):
        raise CheckpointError(
            f"'{out}' is not empty. Add --resume to go on in it, or choose another folder."
        )
    jobs: list[StageJob] = []
    for number, link in enumerate(links, start=1):
        stage = load_stage(link.stage, link.overrides)
        job = StageJob(
            stage=stage,
            checkpoint=jobs[-1].out if jobs else checkpoint,
            data=link.data,
            out=out / f"{number}-{stage.name}",
            eval_data=link.eval_data,
            resume=resume,
            tensorboard=tensorboard,
        )
        jobs.append(job)
    return tuple(jobs)


def run_chain(
    jobs: Sequence[StageJob],
    *,
    make_progress: Callable[[], Progress] = Progress,
    report: Callable[[str], None] = lambda text: None,
) -> list[StageResult]:
    """Run the stages in a row; those that are finished are passed over with `resume`.

    Args:
        jobs: from `chain_jobs`.
        make_progress: called for each stage.
        report: called on the first process with sentences for the user.

    Returns:
        A result per stage that was reached; the last is not `finished` where it was stopped.

    Raises:
        LacoError: as of `run_stage`.
    """
    results: list[StageResult] = []
    for number, job in enumerate(jobs, start=1):
        name = f"{job.stage.name} ({number} of {len(jobs)})"
        result = run_stage(
            job,
            progress=make_progress(),
            report=lambda text, name=name: report(f"{name}: {text}"),  # type: ignore[misc]
        )
        results.append(result)
        if not result.finished:
            break
    return results


def _beside(path: Path, stage: str) -> str | Path:
    file = path.parent / stage
    return file if file.is_file() else stage


__all__ = ["Link", "chain_jobs", "read_chain", "run_chain"]
