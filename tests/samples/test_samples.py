"""The shipped checkpoint and the programs in samples/, run as a reader would run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from laco_deploy import Pipeline
from laco_deploy.model.checkpoint import load_checkpoint
from laco_deploy.training.card import summarise
from laco_deploy.training.evaluation import Score
from tests.bundles import TINY, TINY_TARGETS

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"


def test_shipped_checkpoint_is_small_and_merges_after_a_quarter_of_the_blocks() -> None:
    config = load_checkpoint(TINY).config
    height, width = config.patch_grid
    assert sum(path.stat().st_size for path in TINY.glob("*.safetensors")) <= 12_000_000
    assert height * width >= 144
    assert [(m.after_block, m.ratio) for m in config.merger_specs] == [
        (config.vision.num_hidden_layers // 4, 2)
    ]


def test_card_states_the_recorded_accuracies() -> None:
    record = json.loads((TINY / "training.json").read_text())
    scores = {s.group: s for s in summarise(Score(**values) for values in record["test"])}
    card = (TINY / "README.md").read_text()
    for group, least in (("digits, reading", 0.90), ("shapes", 0.80)):
        assert scores[group].accuracy >= least
        assert f"{scores[group].accuracy:.1%}" in card


@pytest.mark.parametrize("target", TINY_TARGETS)
def test_engine_answers_every_parity_image_as_pytorch_does(
    tiny_engines: dict[str, Path], target: str
) -> None:
    parity = Pipeline(tiny_engines[target]).facts.parity
    assert parity is not None
    assert parity.images == 64 + parity.adversarial_images == 80
    assert parity.greedy_identical + parity.ties >= parity.answered_images == 80
    assert all(check.met for check in parity.checks)
    assert parity.visual_token_cosine_min > 0.99999


@pytest.mark.parametrize("target", TINY_TARGETS)
def test_sample_questions_are_answered_right(tiny_engines: dict[str, Path], target: str) -> None:
    pipeline = Pipeline(tiny_engines[target])
    questions = json.loads((SAMPLES / "images" / "questions.json").read_text())
    for question in questions[:3]:
        reply = pipeline.chat(SAMPLES / "images" / question["image"], question["prompt"])
        assert reply.text == question["answer"], question["image"]


def test_quickstart_prints_an_answer(tiny_engines: dict[str, Path]) -> None:
    image = SAMPLES / "images" / "digit_single.png"
    done = subprocess.run(
        [
            sys.executable,
            SAMPLES / "quickstart.py",
            tiny_engines["onnxruntime"],
            image,
            "What digit?",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    answer, counts = done.stdout.splitlines()
    assert answer
    assert counts.startswith("36 visual tokens")
