"""Which runs a comparison is made of, and when it refuses to mix them with others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from laco_deploy.training.compare.cells import (
    Cell,
    plan,
    read_result,
    read_results,
    result_path,
    write_result,
)
from laco_deploy.training.compare.settings import BUDGETS, TOWER_SHARE
from laco_runtimes.errors import DataError
from tests.training.compare.made_up import result

FULL = BUDGETS["full"]
METHODS = {
    "laco",
    "pixel_shuffle",
    "pixel_shuffle + shortcut",
    "ldpv2",
    "token_packer",
    "avg_pool",
}


def test_every_seed_compares_all_methods_at_a_quarter_of_the_blocks() -> None:
    assert len(FULL.seeds) >= 3
    assert FULL.recipe.after_block * 4 == FULL.recipe.vision_blocks
    for seed in FULL.seeds:
        cells = [cell for cell in plan(FULL) if cell.seed == seed and cell.rates == "scaled"]
        quarter = {c.method for c in cells if c.after_block == FULL.recipe.after_block}
        assert quarter == METHODS
        assert [c.method for c in cells if c.kind is None] == ["no merger"]


def test_laco_stands_at_the_five_places_of_the_paper() -> None:
    blocks = FULL.recipe.vision_blocks
    assert FULL.positions == (blocks // 12, blocks // 6, blocks // 4, blocks // 2, blocks)
    for seed in FULL.seeds:
        places = {
            cell.after_block
            for cell in plan(FULL)
            if cell.kind == "laco" and cell.seed == seed and cell.rates == "scaled"
        }
        assert places == set(FULL.positions)


def test_names_of_cells_differ() -> None:
    names = [cell.name for cell in plan(FULL)]
    assert len(set(names)) == len(names)


def test_cells_go_seed_by_seed() -> None:
    seeds = [cell.seed for cell in plan(FULL)]
    assert seeds == sorted(seeds)


def test_rates_keep_the_proportions_of_the_paper() -> None:
    assert pytest.approx(0.2) == TOWER_SHARE
    plans = FULL.rate_plans
    for name in ("scaled", "slow_merger", "forgotten_merger"):
        assert plans[name].tower == pytest.approx(0.2 * plans[name].rest)
    assert plans["scaled"].merger == plans["scaled"].rest
    assert plans["slow_merger"].merger == plans["slow_merger"].tower
    assert (plans["literal"].tower, plans["literal"].merger) == (2e-6, 1e-5)
    assert plans["literal_slow_merger"].merger == 2e-6
    assert plans["scaled"].stage1(1e-3) == {"projector": 1e-3, "merger": 1e-3}
    assert plans["forgotten_merger"].stage1(1e-3) == {"projector": 1e-3}


def test_methods_that_learn_run_with_a_merger_at_the_rate_of_the_tower_too() -> None:
    for seed in FULL.seeds:
        slow = {c.method for c in plan(FULL) if c.seed == seed and c.rates == "slow_merger"}
        assert slow == METHODS - {"avg_pool"}
    assert {cell.rates for cell in plan(FULL)} == set(FULL.rate_plans)
    quarter = FULL.recipe.after_block
    assert all(c.after_block == quarter for c in plan(FULL) if c.rates != "scaled")


def test_digest_follows_what_is_computed_and_not_how_often() -> None:
    assert replace(FULL, seeds=(0, 1, 2, 3)).digest == FULL.digest
    assert replace(FULL, stage2_steps=FULL.stage2_steps + 1).digest != FULL.digest
    assert replace(FULL, rate=2 * FULL.rate).digest != FULL.digest
    longer = replace(FULL, recipe=replace(FULL.recipe, steps=FULL.recipe.steps + 1))
    assert longer.digest != FULL.digest
    assert longer.pretraining_digest != FULL.pretraining_digest
    assert replace(FULL, rate=2 * FULL.rate).pretraining_digest == FULL.pretraining_digest


def test_a_result_reads_as_it_was_written(tmp_path: Path) -> None:
    cell = Cell(kind="pixel_shuffle", shortcut="window_mean", after_block=3, seed=1)
    written = result(cell, 0.5, ("digits", "text"))
    write_result(tmp_path, written, "abc")
    assert read_results(tmp_path, "abc") == [written]


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    cell = Cell(kind=None, seed=0)
    write_result(tmp_path, result(cell, 0.5, ("digits",)), "abc")
    with pytest.raises(DataError, match="other settings"):
        read_results(tmp_path, "def")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"digest": "abc", "cell": {"kind": 3}}'])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    path = result_path(tmp_path, Cell(kind=None, seed=0))
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DataError, match="no-merger"):
        read_result(path, "abc")
