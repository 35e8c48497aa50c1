"""The stages' files hold the paper's values, and settings are read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from laco_deploy.training.stage import STAGE_NAMES, Stage, load_stage, parse_settings
from laco_runtimes.errors import ConfigError

ALL_PARTS = {"tower": 2e-6, "merger": 1e-5, "projector": 1e-5, "language_model": 1e-5}

# Paper sections 3.4 and 4.1; what it leaves open as in LLaVA-OneVision's scripts.
PAPER: dict[str, dict[str, Any]] = {
    "stage1": {
        "learning_rates": {"projector": 1e-3, "merger": 1e-3},
        "style": "plain",
        "image_mode": "square",
        "max_length": 8192,
    },
    **{
        name: {
            "learning_rates": ALL_PARTS,
            "style": "chat",
            "image_mode": "anyres",
            "max_length": 32768,
        }
        for name in ("stage1.5", "stage2-si", "stage2-ov")
    },
}
COMMON = {
    "epochs": 1,
    "global_batch": 512,
    "schedule": "cosine",
    "min_learning_rate": 1e-7,
    "warmup_ratio": 0.03,
    "weight_decay": 0,
    "adam_betas": (0.9, 0.999),
    "max_grad_norm": 1.0,
    "precision": "bf16",
    "gradient_checkpointing": True,
    "clean_mask": False,
    "max_steps": None,
    "max_frames": 32,
    "fps": 1,
}


def test_the_four_stages_come_in_order() -> None:
    assert list(PAPER) == list(STAGE_NAMES)


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_a_stage_holds_the_papers_values(name: str) -> None:
    stage = load_stage(name)
    assert stage.name == name
    for setting, value in {**COMMON, **PAPER[name]}.items():
        assert getattr(stage, setting) == value, setting


def test_the_command_line_is_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nlearning_rates: {projector: 1e-3, merger: 1e-3}\nmax_length: 99\n")
    assert load_stage(own).global_batch == Stage.model_fields["global_batch"].default
    assert load_stage(own).max_length == 99
    words = ["learning_rates.merger=1e-4", "learning_rates.projector=null", "max_length=7"]
    changed = load_stage(own, parse_settings(words))
    assert changed.max_length == 7
    assert changed.learning_rates == {"merger": 1e-4}
    assert load_stage("stage1", {"learning_rates": {"tower": 1}}).learning_rates == {"tower": 1}


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_a_resolved_stage_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    stage = load_stage(name, {"max_broken": 3, "micro_batch": 4})
    (tmp_path / "stage.yaml").write_text(f"# checkpoint: x\n{stage.to_yaml()}")
    assert load_stage(tmp_path / "stage.yaml") == stage


def test_accumulation_fills_the_global_batch() -> None:
    stage = load_stage("stage1", {"micro_batch": 16})
    assert stage.accumulation(1) == 32
    assert stage.accumulation(8) == 4
    with pytest.raises(ConfigError, match=r"512 is no multiple of 3 processes x micro_batch 16"):
        stage.accumulation(3)


def test_broken_samples_are_allowed_by_count_or_share() -> None:
    assert load_stage("stage1", {"max_broken": 0.01}).allowed_broken(558_000) == 5580
    assert load_stage("stage1", {"max_broken": 7}).allowed_broken(558_000) == 7
    assert load_stage("stage1", {"max_broken": 0}).allowed_broken(558_000) == 0


def test_one_floor_is_a_share_of_every_parts_rate() -> None:
    """As transformers has it: 1e-7 of 1e-5 is a hundredth, and so the tower ends at 2e-8."""
    assert load_stage("stage1").min_rate == pytest.approx(1e-4)
    assert load_stage("stage2-ov").min_rate == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rate": 1e-3}, r"unknown setting 'learning_rate'. Did you mean .learning_rates"),
        ({"learning_rates.vision": 1e-3}, r"learning_rates.vision"),
        ({"learning_rates": {}}, "learning_rates"),
        ({"learning_rates.merger": -1}, "greater than 0"),
        ({"learning_rates.merger": "fast"}, "learning_rates.merger' is 'fast'"),
        ({"warmup_ratio": 1}, "less than 1"),
        ({"micro_batch": 3}, "512 is no multiple of micro_batch 3"),
        ({"min_learning_rate": 1}, "is above the learning rate"),
        ({"precision": "fp16"}, "'precision' is 'fp16'"),
        ({"max_length.x": 1}, "reaches inside a value"),
    ],
)
def test_a_setting_that_is_not_possible_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_stage("stage2-si", overrides)


def test_files_that_are_no_stage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'stage1'"):
        load_stage("stage-1")
    for text in ("- 1", "a: [", ""):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"own\.yaml"):
            load_stage(tmp_path / "own.yaml")
    for word in ("max_length", "=3", "name=["):
        with pytest.raises(ConfigError, match="--set"):
            parse_settings([word])
