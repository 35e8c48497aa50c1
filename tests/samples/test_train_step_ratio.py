"""The form of what samples/train_step_ratio.py prints and writes; never its times."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS
from laco_deploy.training.parts import parameter_groups
from tests.samples.scripts import load_script

VISION, LLM = "aimv2-large-448", "qwen2.5-0.5b"
NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
SMALL_VISION = {**NARROW, "patch_size": 7, "image_size": 56}
SMALL_LLM = {
    **NARROW,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention"] * 2,
    "vocab_size": 64,
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with small models."""
    module = load_script("train_step_ratio", monkeypatch)
    vision, llm = VISION_PRESETS[VISION], LANGUAGE_PRESETS[LLM]
    vision = replace(vision, settings={**vision.settings, **SMALL_VISION}, blocks=4)
    llm = replace(llm, settings={**llm.settings, **SMALL_LLM}, blocks=2)
    monkeypatch.setattr(module, "VISION_PRESETS", {VISION: vision})
    monkeypatch.setattr(module, "LANGUAGE_PRESETS", {LLM: llm})
    return module


def test_the_same_merger_takes_every_place_and_all_learns(script: ModuleType) -> None:
    torch.manual_seed(0)
    model = script.make_model(VISION, LLM, torch.float32).train()
    model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(parameter_groups(model, script.RATES))
    [(place, merger)] = model.model.vision_encoder.mergers.items()
    assert place == "1"
    lengths = []
    for after_block in (1, 4, None):
        variant = script.Variant(name="any", after_block=after_block)
        script.place(model, merger, after_block)
        batch = script.make_batch(model, 2, 10)
        lengths.append(batch["input_ids"].shape[1])
        script.step(model, optimizer, batch, variant)
        assert [len(variant.seconds), len(variant.optimizer_seconds)] == [1, 1]
        assert 0 < variant.optimizer_seconds[0] < variant.seconds[0]
        gradients = [weight.grad for weight in merger.parameters()]
        assert all((one is not None) == (after_block is not None) for one in gradients)
    assert lengths == [16 + 10, 16 + 10, 64 + 10]


def test_program_prints_a_table_and_writes_every_figure(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "step.json"
    assert script.main(["--rounds", "3", "--uncompressed", "--words", "8", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    _, _, *body = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert [row[0] for row in body] == ["LaCo@1/4", "LaCo@1", "no merger"]
    figures = json.loads(out.read_text())
    assert [len(row["seconds"]) for row in figures["rows"]] == [3, 3, 3]
    assert figures["rows"][1]["ratio"] == 1.0
    inside = figures["rows"][0]["ratio"]
    assert lines[-1] == f"A step of LaCo@1/4 takes {1 - inside:.1%} less time than one of LaCo@1."
    if sys.platform == "linux":
        assert all(row["peak_gb"] > 0 for row in figures["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vision", "aimv2"], "unknown vision encoder 'aimv2'"),
        (["--rounds", "0"], "'0' is not a whole number from 1"),
        (["--json", "/nowhere/step.json"], "there is no folder '/nowhere'"),
    ],
)
def test_wrong_arguments_end_before_any_work(
    script: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
