"""Whole comparisons: a run by itself, and the command that goes on where it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from laco_deploy.cli import run as laco
from laco_deploy.training.compare import BUDGETS, Cell, compare, plan
from laco_deploy.training.compare.cells import result_path
from laco_deploy.training.compare.pretrain import Workshop
from laco_deploy.training.compare.run import run_cell
from laco_deploy.training.compare.settings import Budget
from laco_runtimes.errors import ArgumentError, DataError

MICRO = BUDGETS["micro"]
LACO = Cell(kind="laco", after_block=1, seed=0)


def test_a_run_repeats_to_the_bit(workshop: Workshop, budget: Budget) -> None:
    first, again = (run_cell(workshop, budget, LACO) for _ in range(2))
    assert first.losses == again.losses
    assert first.scores == again.scores
    assert [step for step, _ in first.losses] == [2, 5]  # both stages, on one axis
    assert sum(score.total for score in first.scores) == budget.recipe.counts["test"]
    other = run_cell(workshop, budget, replace(LACO, seed=1))
    assert other.losses != first.losses


def test_stage_1_leaves_tower_and_language_model_alone(
    workshop: Workshop, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    trained: list[set[str]] = []
    from laco_deploy.training.compare import run

    original = run.fit

    def spy(model: torch.nn.Module, *args: object, **kwargs: object) -> object:
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        state = original(model, *args, **kwargs)  # type: ignore[arg-type]
        moved = {n for n, w in model.named_parameters() if not torch.equal(w, before[n])}
        trained.append({name.split(".")[1] + "." + name.split(".")[2] for name in moved})
        seen.append(dict(kwargs["learning_rates"]))  # type: ignore[call-overload]
        return state

    monkeypatch.setattr(run, "fit", spy)
    run_cell(workshop, budget, LACO)
    assert seen[0] == {"projector": 1e-3, "merger": 1e-3}
    assert {name.split(".")[0] for name in trained[0]} == {"vision_encoder", "projector"}
    assert "vision_encoder.tower" not in trained[0]
    assert "vision_encoder.mergers" in trained[0]
    assert seen[1]["tower"] == pytest.approx(seen[1]["merger"] / 5)
    assert {"vision_encoder.tower", "language_model.layers"} <= trained[1]


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"digest": "other"}))
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.json").write_text("{}")
    with pytest.raises(DataError, match="other settings"):
        compare(MICRO, out=tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text()) == {"digest": "other"}


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="workers"):
        compare(MICRO, out=tmp_path / "out", workers=0)
    with pytest.raises(ArgumentError, match="no cell has"):
        compare(MICRO, out=tmp_path / "out", only="nonsense")
    assert not (tmp_path / "out").exists()


def test_the_command_reports_what_is_there_and_names_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert laco(["compare", "--out", str(tmp_path), "--budget", "micro", "--report"]) == 1
    assert "no result yet" in capsys.readouterr().err


@pytest.mark.full
def test_the_command_runs_what_is_missing_and_nothing_twice(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(root, out)  # pretrained by another test
    command = ["compare", "--out", str(out), "--budget", "micro", "--only", "pool"]
    assert laco(command) == 0
    cells = [cell for cell in plan(MICRO) if cell.kind == "avg_pool"]
    written = {result_path(out, cell): result_path(out, cell).read_bytes() for cell in cells}
    assert sorted((out / "cells").iterdir()) == sorted(written)
    lost = next(iter(written))
    lost.unlink()
    assert laco(command) == 0
    old, new = json.loads(written[lost]), json.loads(lost.read_bytes())
    assert (old["scores"], old["losses"]) == (new["scores"], new["losses"])
    assert all(path.read_bytes() == text for path, text in written.items() if path != lost)
    assert (out / "report" / "comparison.md").is_file()
