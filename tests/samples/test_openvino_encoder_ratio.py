"""What samples/openvino_encoder_ratio.py makes, prints and writes; never its times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from laco_deploy.model.presets import VISION_PRESETS
from tests.samples.scripts import load_script

PRESET = "aimv2-large-448"
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "patch_size": 7}


def test_encoders_are_made_once_and_measured_in_both_precisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("openvino_encoder_ratio", monkeypatch)
    plain = VISION_PRESETS[PRESET]
    small = replace(plain, settings={**plain.settings, **SMALL, "image_size": 56}, blocks=4)
    monkeypatch.setattr(script, "VISION_PRESETS", {PRESET: small})
    options = ["--work", str(tmp_path), "--preset", PRESET, "--rounds", "1", "--threads", "1"]
    assert script.main([*options, "--json", str(tmp_path / "ratio.json")]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("compiled in") == 4
    assert "| LaCo@1/4 int8 |" in printed.out
    names = [one["encoder"] for one in json.loads((tmp_path / "ratio.json").read_text())]
    assert names == [f"LaCo@{place} {one}" for place in ("1/4", "1") for one in ("fp32", "int8")]
    assert script.main(options) == 0
    assert "compiled in" not in capsys.readouterr().err
