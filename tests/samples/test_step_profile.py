"""The profile of a decoding step holds every kernel and the bytes of its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("openvino")

from samples import step_profile


@pytest.mark.full  # an export for one program
def test_program_prints_kernels_and_writes_every_figure(
    bundle_for: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, figures = bundle_for("openvino"), tmp_path / "figures.json"
    arguments = [str(engine), "--past", "20", "--steps", "2", "--json", str(figures)]
    assert step_profile.main(arguments) == 0
    found = json.loads(figures.read_text())
    assert found["ours"] > 0
    assert found["bare"] > 0
    size = (engine / "openvino" / "openvino_language_model.bin").stat().st_size
    assert found["weight_bytes"] == size
    names = [one["name"].split()[0] for one in found["kernels"]]
    assert any(name.startswith("PagedAttention") for name in names)
    assert "FullyConnected" in names
    printed = capsys.readouterr().out
    assert "step behind 20 tokens" in printed
    assert "FullyConnected" in printed


def test_a_folder_that_is_no_bundle_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step_profile.main([str(tmp_path)]) == 1
    assert "laco.json" in capsys.readouterr().err
