"""The form of what samples/encoder_ratio.py prints and writes; never its times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from laco_deploy.model.presets import VISION_PRESETS
from tests.samples.scripts import load_script

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "patch_size": 7}
SIZES = {"aimv2-large-448": 56, "siglip-so400m-384": 64, "internvit-300m-448": 56}
ORDER = ["LaCo@1/4", "LaCo@1/2", "LaCo@1", "no merger", "transformers"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with every preset cut down to four narrow blocks."""
    module = load_script("encoder_ratio", monkeypatch)
    small = {
        name: replace(
            VISION_PRESETS[name],
            settings={**VISION_PRESETS[name].settings, **SMALL, "image_size": size},
            blocks=4,
        )
        for name, size in SIZES.items()
    }
    monkeypatch.setattr(module, "VISION_PRESETS", small)
    return module


@pytest.mark.parametrize("preset", SIZES)
def test_variants_share_one_encoder_that_gives_what_transformers_gives(
    script: ModuleType, preset: str
) -> None:
    torch.manual_seed(0)
    variants = script.make_variants(script.VISION_PRESETS[preset].config(), torch.float32)
    assert [one.name for one in variants] == ORDER
    *ours, theirs = variants
    assert all(one.run.tower is theirs.run for one in ours)
    pixels = torch.randn(2, 3, SIZES[preset], SIZES[preset])
    with torch.inference_mode():
        tokens = theirs.run(pixels).last_hidden_state[:, -ours[-1].tokens :]  # without CLS
        assert torch.equal(ours[-1].run(pixels), tokens)
        for one in ours:
            assert one.run(pixels).shape == (2, one.tokens, 32)
    assert [one.gflop for one in ours[:3]] == sorted(one.gflop for one in ours[:3])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_program_prints_a_table_and_writes_every_figure(
    script: ModuleType, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ratio.json"
    before = torch.get_num_threads()
    arguments = [
        *("--preset", "aimv2-large-448", "--dtype", dtype, "--rounds", "2"),
        *("--threads", "1", "--tile-count", "2", "--json", str(out)),
    ]
    try:
        assert script.main(arguments) == 0
    finally:
        torch.set_num_threads(before)
    lines = capsys.readouterr().out.splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    header, _, *body = table
    assert [row[0] for row in body] == ORDER
    assert {len(row) for row in body} == {len(header)}
    assert [row[1:3] for row in body] == [
        *(["1", "16"], ["2", "16"], ["4", "16"], ["-", "64"], ["-", "64"])
    ]
    assert body[2][4:7] == ["1.000"] * 3
    assert [line.partition(":")[0] for line in lines[-2:]] == [
        "no merger / transformers",
        "LaCo@1 / transformers",
    ]

    figures = json.loads(out.read_text())
    assert (figures["dtype"], figures["tiles"], figures["threads"]) == (dtype, 2, 1)
    assert [row["variant"] for row in figures["rows"]] == ORDER
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in figures["rows"])
    assert list(figures["overhead"]) == ["no merger", "LaCo@1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "aimv2-large-44"], "Did you mean 'aimv2-large-448'"),
        (["--rounds", "0"], "'0' is not a whole number from 1"),
        (["--json", "nowhere/ratio.json"], "there is no folder 'nowhere'"),
    ],
)
def test_program_refuses_what_it_cannot_do_before_it_measures(
    script: ModuleType,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        script.main(arguments)
    assert message in capsys.readouterr().err
