"""What samples/loop_overhead.py runs and prints; never its times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from laco_runtimes.sources import KINDS
from tests.samples.scripts import load_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_script("loop_overhead", monkeypatch)
    monkeypatch.setitem(KINDS, "fake", KINDS["bundle"])  # taken out again after the test
    return module


def test_the_fake_engine_says_its_words_through_the_whole_pipeline(
    script: ModuleType, tmp_path: Path
) -> None:
    pipeline, engine = script.fake_pipeline(tmp_path, 600)
    reply = pipeline.chat(None, script.PROMPT, max_new_tokens=60)
    assert "The green cup stands left of the red one." in reply.text
    assert engine.cpu_ns > 0
    fast = pipeline.chat(None, script.PROMPT, max_new_tokens=60, prompt_lookup=8)
    assert fast.text == reply.text


def test_every_case_is_measured_and_none_ends_early(script: ModuleType, tmp_path: Path) -> None:
    pipeline, engine = script.fake_pipeline(tmp_path, 600)
    rows = script.measure(pipeline, engine, 12, 1)
    assert [row.name for row in rows] == list(script.CASES)


@pytest.mark.parametrize(("cost", "code"), [(0.29, 0), (0.31, 3)])
def test_exit_code_says_whether_greedy_keeps_the_limit(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cost: float,
    code: int,
) -> None:
    monkeypatch.setattr(script, "measure", lambda *_: [script.Row("greedy", cost, 1.0)])
    monkeypatch.setattr(sys, "argv", ["loop_overhead.py", "--json"])
    assert script.main() == code
    assert json.loads(capsys.readouterr().out) == [
        {"name": "greedy", "cpu_ms": cost, "wall_ms": 1.0}
    ]
