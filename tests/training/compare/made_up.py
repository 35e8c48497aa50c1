"""Made-up results, to test what a report makes of them without training anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from laco_deploy.training.compare.cells import Cell, CellResult, plan, write_result
from laco_deploy.training.compare.settings import Budget
from laco_deploy.training.compare.studies import Studies
from laco_deploy.training.evaluation import Score

TOTAL = 100
GUESSES = 10


def result(cell: Cell, right: float, groups: tuple[str, ...]) -> CellResult:
    """A cell with so large a share right in every group."""
    scores = tuple(Score(group, "task", round(right * TOTAL), TOTAL) for group in groups)
    return CellResult(
        cell=cell,
        scores=scores,
        before=scores,
        losses=((20, 1.0), (40, 1.5 - right)),
        cpu_seconds=100.0 + 10 * cell.after_block,
        total_cpu_seconds=130.0 + 10 * cell.after_block,
        encoder_operations=10_000_000 * (1 + cell.after_block),
        prefill_operations=1_000_000,
        visual_tokens=36,
        merger_parameters=20_000,
    )


def studies(budget: Budget, right: Callable[[Cell], float]) -> Studies:
    """All cells of a budget, each with the share that `right` names and a little noise by seed."""
    rng = np.random.default_rng(0)
    noise = {cell.name: 0.01 * float(rng.standard_normal()) for cell in plan(budget)}
    results = tuple(
        result(cell, right(cell) + noise[cell.name], budget.recipe.groups) for cell in plan(budget)
    )
    return Studies(budget, results, record(budget))


def record(budget: Budget) -> dict[str, object]:
    """What the pretraining would have left."""

    def scores(right: int) -> list[dict[str, object]]:
        return [
            {"group": group, "task": "task", "correct": right, "total": TOTAL}
            for group in budget.recipe.groups
        ]

    return {
        "digest": budget.pretraining_digest,
        "workers": 2,
        "wall_seconds": 3000.0,
        "cpu_seconds": 6000.0,
        "losses": [[20, 1.0]],
        "test": scores(70),
        "guesses": scores(GUESSES),
    }


def write(root: Path, made: Studies) -> None:
    """As a comparison leaves them on disk."""
    for one in made.results:
        write_result(root, one, made.budget.digest)
    (root / "pretrained").mkdir()
    (root / "pretrained" / "training.json").write_text(json.dumps(made.pretraining))
