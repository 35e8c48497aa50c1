"""What samples/first_token.py asks and prints; never its times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.samples.scripts import load_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("first_token", monkeypatch)


def test_a_second_turn_encodes_nothing_and_prefills_its_own_tokens(
    script: ModuleType,
    bundle_for: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "figures.json"
    engine = str(bundle_for("onnxruntime"))
    assert script.main([engine, "--rounds", "1", "--threads", "1", "--json", str(file)]) == 0
    rounds = json.loads(file.read_text())
    assert len(rounds) == 1
    for turns in (one for done in rounds for one in done):
        assert turns["encoded"] == 1
        assert 0 < turns["second_prefilled"] < 60
        assert turns["second_encode_ms"] < turns["first_ms"]
    assert "turn 2" in capsys.readouterr().out


def test_ratios_are_paired_by_round(script: ModuleType) -> None:
    def turns(variant: str, first: float, second: float) -> object:
        return script.Turns(variant, first, second, 20, 0.0, 1, 9)

    rounds = [
        [turns("laco", 10, 2), turns("uncompressed", 40, 4)],
        [turns("laco", 30, 3), turns("uncompressed", 60, 6)],
        [turns("laco", 20, 6), turns("uncompressed", 50, 5)],
    ]
    lines = script.summary(rounds)
    assert "(0.200 of it" in lines[0]  # 0.2, 0.1, 0.3
    assert lines[-1].endswith("0.400")  # 0.25, 0.5, 0.4


def test_a_folder_that_is_no_bundle_is_an_error(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main([str(tmp_path)])
    assert ended.value.code == 1
    assert "error:" in capsys.readouterr().err
