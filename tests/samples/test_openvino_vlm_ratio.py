"""What samples/openvino_vlm_ratio.py asks, prints and writes; never its times."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from laco_runtimes.engines import ENGINES
from tests.genai_pipelines import kept
from tests.samples.scripts import load_script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    found = load_script("openvino_vlm_ratio", monkeypatch)
    plain = found.peer_system
    monkeypatch.setattr(found, "peer_system", lambda *given: kept(plain(*given)))
    return found


@pytest.fixture
def bundle(bundle_for: Callable[[str], Path]) -> Path:
    pytest.importorskip("openvino")
    return bundle_for("openvino")


def test_our_side_is_the_whole_pipeline_timed_token_by_token(
    script: ModuleType, bundle: Path
) -> None:
    before = ENGINES["openvino"]
    ticks = itertools.count()
    system = script.our_system(bundle, 1, lambda: float(next(ticks)))
    assert ENGINES["openvino"] is before
    image = next(script.images(56))
    for _ in range(2):  # asked again, it forgets what it knew
        answer = system.ask(image, "What is it?", 5)
        assert answer.text
        # A clock that counts how often it is asked: at the start, at four steps, at the end.
        assert (answer.first, answer.step) == (1.0, 1.0)
    one = system.ask(image, "What is it?", 1)
    assert (one.first, one.step) == (1.0, None)


def test_images_are_new_and_as_large_as_the_encoders(script: ModuleType) -> None:
    one, two = itertools.islice(script.images(56), 2)
    assert one.shape == two.shape == (56, 56, 3)
    assert one.dtype == np.uint8
    assert not np.array_equal(one, two)


def test_ratios_are_paired_by_round_and_rounds_without_a_second_token_left_out(
    script: ModuleType,
) -> None:
    answer = script.Answer
    ours = script.System("ours", None, [answer("a", 1, 2), answer("b", 3, 4), answer("c", 9, None)])
    peer = script.System("peer", None, [answer("a", 2, 2), answer("x", 2, 2), answer("c", 3, 1)])
    found = {(row["system"], row["time"]): row for row in script.rows("engine", [ours, peer])}
    first, step = found["peer", "first token"], found["peer", "per token"]
    assert (first["min_ms"], first["median_ms"]) == (2000, 2000)
    assert (first["min_ratio"], first["median_ratio"]) == (0.5, 1.5)
    assert (step["min_ratio"], step["median_ratio"]) == (1.0, 1.5)
    assert (first["same_answers"], first["rounds"]) == (2, 3)
    assert found["ours", "first token"]["median_ratio"] == 1


def test_program_prints_a_table_and_writes_every_figure(
    script: ModuleType, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino_genai")
    out = tmp_path / "vlm.json"
    arguments = [str(bundle), "--rounds", "2", "--new-tokens", "4", "--threads", "1"]
    assert script.main([*arguments, "--backends", "SDPA", "--json", str(out)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    body = [line.strip("| ").split(" | ") for line in lines[2:]]
    systems = ["ours", "openvino_genai SDPA"]
    times = ["first token", "per token"]
    assert [row[1:3] for row in body] == [[time, system] for time in times for system in systems]
    assert {row[-1] for row in body} == {"2 of 2"}
    figures = json.loads(out.read_text())
    assert len(figures) == 4
    assert all(row["bundle"] == str(bundle) for row in figures)


def test_launches_load_in_other_orders_and_are_put_together(
    script: ModuleType,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("openvino_genai")
    out = tmp_path / "vlm.json"
    plain, commands = script.subprocess.run, []

    def run(command: list[str], **options: object) -> object:
        commands.append(command)
        return plain(command, **options)

    monkeypatch.setattr(script.subprocess, "run", run)
    arguments = [str(bundle), "--rounds", "1", "--new-tokens", "3", "--threads", "1"]
    arguments += ["--backends", "SDPA", "--text-only", "--launches", "2", "--json", str(out)]
    assert script.main(arguments) == 0
    orders = [command[command.index("--order") + 1] for command in commands]
    assert orders == ["0", "1"]
    figures = json.loads(out.read_text())
    assert [row["launches"] for row in figures] == [2, 2, 2, 2]
    assert {(row["same_answers"], row["rounds"]) for row in figures} == {(2, 2)}
    assert " to " in capsys.readouterr().out.splitlines()[-1]


def test_each_order_loads_the_same_systems_and_reports_them_alike(
    script: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str) -> object:
        loaded.append(name)
        answer = script.Answer("a", 1.0, 1.0)
        return script.System(name, lambda image, prompt, count: answer)

    monkeypatch.setattr(script, "our_system", lambda *given: load("ours"))
    monkeypatch.setattr(script, "peer_system", lambda bundle, name, *given: load(name))
    parsed = argparse.Namespace(
        bundles=[bundle], prompt="?", threads=None, cpu_time=False, backends=["SDPA", "PA"],
        text_only=False, new_tokens=2, rounds=1,
    )  # fmt: skip
    orders = set()
    for order in range(6):
        loaded.clear()
        found = script.launched(parsed, order)
        orders.add(tuple(loaded))
        assert [row["system"] for row in found] == 2 * ["ours", "SDPA", "PA"]
    assert len(orders) == 6


def test_launches_are_summed_up_by_their_medians(script: ModuleType) -> None:
    rows = [
        {
            "bundle": "engine", "system": "peer", "time": "per token", "same_answers": 3,
            "rounds": 4, "min_ms": ms, "median_ms": ms, "min_ratio": ratio, "median_ratio": ratio,
        }
        for ms, ratio in ((10, 0.9), (30, 1.1), (12, 0.96))
    ]  # fmt: skip
    (found,) = script.together([[row] for row in rows])
    assert (found["min_ms"], found["median_ratio"]) == (12, 0.96)
    assert found["median_ratio_range"] == [0.9, 1.1]
    assert (found["same_answers"], found["rounds"], found["launches"]) == (9, 12, 3)
    assert "0.960 (0.900 to 1.100)" in script.line(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "not for OpenVINO"),
        ([".", "--rounds", "0"], "there must be a round"),
        ([".", "--new-tokens", "1"], "two tokens"),
        ([".", "--launches", "0"], "there must be a launch"),
    ],
)
def test_program_refuses_what_it_cannot_measure(
    script: ModuleType,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        script.main(arguments)
    assert message in capsys.readouterr().err
