"""Run a comparison: pretrain once, then every cell that has no result yet."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import cast

import torch

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.cost import count_parameters, formula_operations
from laco_deploy.training.compare.cells import (
    Cell,
    CellResult,
    plan,
    read_result,
    result_path,
    write_result,
)
from laco_deploy.training.compare.fit import Schedule, fit
from laco_deploy.training.compare.insertion import insert
from laco_deploy.training.compare.peers import end_with
from laco_deploy.training.compare.pictures import batch_order
from laco_deploy.training.compare.pretrain import Workshop, open_workshop, prepare, pretrain
from laco_deploy.training.compare.settings import Budget
from laco_deploy.training.progress import Progress
from laco_runtimes.errors import ArgumentError, DataError

SETTINGS = "settings.json"
_BEFORE = 300
"""Test pictures asked about right after a merger was put in."""


def compare(
    budget: Budget,
    *,
    out: Path,
    workers: int = 2,
    only: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Run what is missing under `out`; safe to stop at any time and to call again.

    Args:
        budget: what to compute.
        out: folder of this comparison.
        workers: processes of one thread each, which share the pretraining and then the cells.
        only: run only cells whose name contains this.
        progress: shows what is going on; None is silent.
        say: told one line per tenth of the pretraining and per finished cell.

    Returns:
        How many cells of the whole plan still have no result.

    Raises:
        ArgumentError: no worker, or no cell has `only` in its name.
        CheckpointError: the model in `out` was pretrained with other settings.
        DataError: `out` holds results of other settings or a damaged one.
    """
    if workers < 1:
        raise ArgumentError(f"{workers} workers cannot run anything. Ask for 1 or more.")
    cells = plan(budget)
    chosen = [cell for cell in cells if only is None or only in cell.name]
    if not chosen:
        raise ArgumentError(f"no cell has '{only}' in its name. One is called {cells[0].name}.")
    progress = progress or Progress()
    _write_settings(out, budget)
    missing = [cell for cell in chosen if not _is_done(out, cell, budget)]
    if missing:
        prepare(out, budget, workers=workers, progress=progress)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            pretrain(out, budget, workers=workers, progress=progress, say=say)
        finally:
            torch.set_num_threads(threads)
        _run_all(out, budget, missing, workers, progress, say)
    return sum(not result_path(out, cell).exists() for cell in cells)


def run_cell(workshop: Workshop, budget: Budget, cell: Cell) -> CellResult:
    """One run: put the merger in, train it with the projector, then all, then test."""
    started = time.process_time()
    model = insert(workshop.checkpoint.model, cell.mergers, cell.seed)
    before = workshop.score(model, limit=_BEFORE)
    rates = budget.rate_plans[cell.rates]
    steps = budget.stage1_steps + budget.stage2_steps
    batches = batch_order(
        len(workshop.pictures),
        batch_size=budget.recipe.batch_size,
        steps=steps,
        seed=cell.seed + 1,  # not in the order of the pretraining, which began with its own seed
    )
    first = fit(
        model,
        workshop.pictures,
        batches[: budget.stage1_steps],
        learning_rates=rates.stage1(budget.stage1_rate),
        schedule=_schedule(budget, budget.stage1_steps),
    )
    second = fit(
        model,
        workshop.pictures,
        batches[budget.stage1_steps :],
        learning_rates=rates.stage2(),
        schedule=_schedule(budget, budget.stage2_steps),
    )
    scores = workshop.score(model)
    config = cast(LacoConfig, model.config)
    operations = formula_operations(config)
    losses = [*first.losses, *((budget.stage1_steps + step, x) for step, x in second.losses)]
    return CellResult(
        cell=cell,
        scores=tuple(scores),
        before=tuple(before),
        losses=tuple(losses),
        cpu_seconds=first.cpu_seconds + second.cpu_seconds,
        total_cpu_seconds=time.process_time() - started,
        encoder_operations=operations.encoder,
        prefill_operations=operations.prefill,
        visual_tokens=config.tokens_per_tile,
        merger_parameters=count_parameters(config).mergers,
    )


def _schedule(budget: Budget, steps: int) -> Schedule:
    warmup = max(1, round(budget.warmup_share * steps))
    return Schedule(steps=steps, warmup_steps=warmup, floor_share=budget.floor_share)


def _write_settings(out: Path, budget: Budget) -> None:
    path = out / SETTINGS
    if path.is_file():
        try:
            digest = json.loads(path.read_text(encoding="utf-8"))["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"'{path}' is damaged. Delete it and run again.") from error
        if digest != budget.digest and any((out / "cells").glob("*.json")):
            raise DataError(
                f"'{out}' holds a comparison with other settings. Choose another folder."
            )
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps({"digest": budget.digest} | budget.as_dict(), indent=1)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _is_done(out: Path, cell: Cell, budget: Budget) -> bool:
    path = result_path(out, cell)
    if path.exists():
        read_result(path, budget.digest)  # or say that it is damaged, or of other settings
    return path.exists()


_workshop: Workshop | None = None
"""Of this worker process."""


def _run_all(
    out: Path,
    budget: Budget,
    missing: list[Cell],
    workers: int,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    with (
        progress.task("cells") as advance,
        ProcessPoolExecutor(
            min(workers, len(missing)), context, _open, (out, budget, os.getpid())
        ) as pool,
    ):
        advance(0, len(missing))
        futures = [pool.submit(_work, out, budget, cell) for cell in missing]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                result = future.result()
                minutes = (time.monotonic() - started) / 60
                say(
                    f"{done}/{len(missing)} {result.cell.name}: {result.accuracy():.1%} right, "
                    f"loss {result.losses[-1][1]:.3f}, {minutes:.0f} min"
                )
                advance(done, len(missing))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _open(out: Path, budget: Budget, parent: int) -> None:
    """Make a worker ready: one thread, the data, and no life beyond that of its parent."""
    global _workshop  # noqa: PLW0603
    end_with(parent)
    torch.set_num_threads(1)
    _workshop = open_workshop(out, budget)


def _work(out: Path, budget: Budget, cell: Cell) -> CellResult:
    if _workshop is None:
        raise RuntimeError("this worker was not opened")
    result = run_cell(_workshop, budget, cell)
    write_result(out, result, budget.digest)
    return result


__all__ = ["SETTINGS", "compare", "run_cell"]
