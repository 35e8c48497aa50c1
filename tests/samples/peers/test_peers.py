"""What samples/peers prepares, asks and says, without any peer; never its times."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laco_runtimes.errors import ArgumentError, EngineError, ExportError
from samples.paper_tables.cells import text_config
from samples.peers import __main__ as program
from samples.peers import prepare
from samples.peers.client import Times, Worker
from samples.peers.ours import facts_of
from samples.peers.systems import ENVIRONMENTS, OURS, PEERS, SYSTEMS, chosen
from samples.peers.turns import Sample, measure, report, rows
from samples.peers.workers.write_gguf import gguf_name, write

ROOT = Path(__file__).resolve().parents[3]
BY_NAME = {system.name: system for system in SYSTEMS}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Worker]:
    def make(timeout_s: float = 60, **settings: Any) -> Worker:
        return Worker(
            "echo",
            (sys.executable, "-m", "tests.samples.peers.echo_worker", json.dumps(settings)),
            log=tmp_path / "echo.log",
            environment={**os.environ, "PYTHONPATH": str(ROOT)},
            folder=ROOT,
            timeout_s=timeout_s,
        )

    return make


class Fake:
    """Takes so long for the first token, ten times less for each further one."""

    def __init__(self, seconds: Sequence[float], fails_in: int | None = None) -> None:
        self.seconds, self.fails_in = seconds, fails_in
        self.prompts: list[list[int]] = []

    def ask(self, prompt: Sequence[int], new_tokens: int) -> Times:
        number = len(self.prompts)
        self.prompts.append(list(prompt))
        if number == self.fails_in:
            raise EngineError("it broke. Mend it.")
        return Times(self.seconds[number], self.seconds[number] / 10)


def test_worker_times_tokens_by_its_own_clock_whatever_its_library_prints(
    start: Callable[..., Worker], tmp_path: Path
) -> None:
    with start() as worker:
        assert worker.versions == {"pytest": version("pytest")}
        for count in (2, 9):
            assert worker.ask([1, 2, 3], count) == Times(2.0, 0.5)
    assert "a library that prints" in (tmp_path / "echo.log").read_text()


def test_worker_that_cannot_load_says_why(start: Callable[..., Worker]) -> None:
    with pytest.raises(EngineError, match="no such model"):
        start(refuse=True)


def test_failed_request_leaves_the_worker_alive(start: Callable[..., Worker]) -> None:
    with start(fail_at=2) as worker:
        with pytest.raises(EngineError, match="bad prompt"):
            worker.ask([1, 2], 3)
        assert worker.ask([1], 3) == Times(2.0, 0.5)


def test_answer_that_is_too_short_is_an_error_and_no_time(start: Callable[..., Worker]) -> None:
    with start(short=1) as worker, pytest.raises(EngineError, match="5 tokens were asked for, 4"):
        worker.ask([1], 5)


def test_worker_that_dies_is_reported_with_its_last_words(start: Callable[..., Worker]) -> None:
    with start(die_at=2) as worker:
        with pytest.raises(EngineError, match="out of memory, aborting"):
            worker.ask([1, 2], 3)
        with pytest.raises(EngineError, match="ended"):
            worker.ask([1], 3)


def test_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="peer cannot be started"):
        Worker(
            "peer",
            (str(tmp_path / "nothing"),),
            log=tmp_path / "log",
            environment={},
            folder=tmp_path,
        )


def test_everybody_is_asked_the_same_new_prompts_in_turns() -> None:
    fakes = {name: Fake([1.0] * 6) for name in ("a", "b", "c")}
    failed: dict[str, str] = {}
    samples = measure(fakes, lengths=[3, 5], new_tokens=4, rounds=2, vocabulary=50, failed=failed)
    prompts = fakes["a"].prompts
    assert fakes["b"].prompts == fakes["c"].prompts == prompts
    assert [len(prompt) for prompt in prompts] == [3, 5] * 3
    assert len({tuple(prompt) for prompt in prompts}) == 6
    assert max(max(prompt) for prompt in prompts) < 50
    assert [(one.round, one.prompt_tokens) for one in samples["a"]] == [
        *((1, 3), (1, 5), (2, 3), (2, 5))
    ]
    assert failed == {}


def test_ratios_are_paired_by_round_and_the_warm_up_is_not_counted() -> None:
    ours, peer = "laco openvino int8", "llama.cpp Q8_0"
    systems = [BY_NAME[ours], BY_NAME[peer]]
    fakes = {ours: Fake([99.0, 1.0, 4.0, 3.0]), peer: Fake([99.0, 2.0, 2.0, 6.0])}
    samples = measure(fakes, lengths=[7], new_tokens=4, rounds=3, vocabulary=50, failed={})
    first, _, step, _ = table = rows(systems, samples)
    assert [(row.system, row.time) for row in table] == [
        *((ours, "first token"), (peer, "first token")),
        *((ours, "per token"), (peer, "per token")),
    ]
    assert (first.median_ms, first.ratio, first.rounds) == (3000, 1.0, 3)
    theirs = table[1]
    assert (theirs.median_ms, theirs.p10_ms, theirs.ratio) == (2000, 2000, 0.5)
    assert step.median_ms == pytest.approx(300)
    text = report({"date": "2030-01-01"}, table, {"llama_cpp": {"llama-cpp-python": "1"}}, {})
    assert f"| first token | 7 | {peer} | 2000.0 | 2000.0–5200.0 | 0.500 | {ours} |" in text
    assert text.startswith("date 2030-01-01\n")
    assert text.endswith("llama_cpp: llama-cpp-python 1\n")


def test_system_that_breaks_leaves_the_rest_whole_and_is_asked_no_more() -> None:
    ours, peer = "laco openvino int8", "llama.cpp Q8_0"
    fakes = {ours: Fake([1.0] * 9, fails_in=2), peer: Fake([2.0] * 9)}
    failed: dict[str, str] = {}
    samples = measure(fakes, lengths=[7], new_tokens=4, rounds=3, vocabulary=50, failed=failed)
    assert failed == {ours: "it broke. Mend it."}
    assert len(fakes[ours].prompts) == 3
    assert [one.round for one in samples[peer]] == [1, 2, 3]
    table = rows([BY_NAME[ours], BY_NAME[peer]], samples)
    assert {row.rounds for row in table if row.system == peer} == {3}
    assert {row.ratio for row in table} == {1.0, 0.5}  # of the one round that both have
    without = rows([BY_NAME[peer]], {peer: [Sample(1, 7, Times(1.0, 1.0))]})
    assert {row.ratio for row in without} == {None}
    assert "| – |" in report({}, without, {}, failed)
    assert f"{ours} is missing: it broke. Mend it." in report({}, table, {}, failed)


def test_every_peer_stands_against_one_of_ours_of_as_many_bits() -> None:
    assert len(BY_NAME) == len(SYSTEMS)
    assert {system.home for system in SYSTEMS} == {OURS, *PEERS} == {OURS, *ENVIRONMENTS}
    for system in SYSTEMS:
        own = BY_NAME[system.against]
        assert own.home == OURS
        assert own.weights[-1] == system.weights.replace("_0", "")[-1]
        assert (ROOT / f"{system.worker.replace('.', '/')}.py").is_file()
    names = [system.name for system in chosen(("llama_cpp",))]
    assert names == ["laco openvino int8", "laco openvino int4", "llama.cpp Q8_0", "llama.cpp Q4_0"]


def test_environment_is_made_once_and_again_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    said: list[Sequence[str]] = []

    def create(folder: Path, clear: bool, with_pip: bool) -> None:
        assert clear
        assert with_pip
        made.append(folder)
        folder.mkdir(parents=True, exist_ok=True)

    def run(command: Sequence[str], variables: object, log: Path) -> None:
        said.append(command)

    def killed(command: Sequence[str], variables: object, log: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.venv, "create", create)
    with pytest.raises(KeyboardInterrupt):
        prepare.make_environment(tmp_path, "llama_cpp", killed)
    for _ in range(2):
        prepare.make_environment(tmp_path, "llama_cpp", run)
    assert len(made) == 2
    python = prepare.program(tmp_path, "llama_cpp", "python")
    assert all(command[:4] == (python, "-m", "pip", "install") for command in said)
    assert [command[5:] for command in said] == list(ENVIRONMENTS["llama_cpp"].installs)
    assert "--no-binary" in said[0]  # llama.cpp is built from its source


def test_model_appears_when_it_is_whole(tmp_path: Path) -> None:
    system = BY_NAME["llama.cpp Q8_0"]
    asked: list[Sequence[str]] = []

    def half(command: Sequence[str], variables: object, log: Path) -> None:
        asked.append(command)
        Path(command[-2]).write_text("half")
        raise ExportError("it failed. Try again.")

    def whole(command: Sequence[str], variables: object, log: Path) -> None:
        asked.append(command)
        assert not Path(command[-2]).exists()
        Path(command[-2]).write_text("whole")

    with pytest.raises(ExportError, match="it failed"):
        prepare.make_model(system, {}, tmp_path, half)
    assert not (tmp_path / system.model).exists()
    prepare.make_model(system, {}, tmp_path, whole)
    prepare.make_model(system, {}, tmp_path, half)  # nothing is left to do
    assert (tmp_path / system.model / system.file).read_text() == "whole"
    assert asked[0] == asked[1]
    assert asked[0][0] == prepare.program(tmp_path, "llama_cpp", "python")
    assert asked[0][3] == str(tmp_path / "weights")


def test_command_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "make.log"
    said = (sys.executable, "-c", "import sys; print('why'); sys.exit(4)")
    with pytest.raises(ExportError, match=r"ended with 4.*make\.log"):
        prepare.run_here(said, {}, log)
    assert log.read_text() == "why\n"
    with pytest.raises(ExportError, match="cannot be started"):
        prepare.run_here((str(tmp_path / "nothing"),), {}, log)


def test_peers_see_the_samples_and_nothing_of_ours() -> None:
    assert prepare.variables_of("llama_cpp")["PYTHONPATH"] == str(ROOT)
    assert prepare.variables_of("llama_cpp")["HF_HUB_OFFLINE"] == "1"
    assert prepare.variables_of(OURS)["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_shape_of_a_work_folder_stays_what_it_was(tmp_path: Path) -> None:
    program.check_shape({"layers": 2}, tmp_path)
    program.check_shape({"layers": 2}, tmp_path)
    with pytest.raises(ArgumentError, match="another shape"):
        program.check_shape({"layers": 24}, tmp_path)


def test_systems_that_cannot_be_made_are_said_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_environment(work: Path, home: str) -> None:
        if home == "llama_cpp":
            raise ExportError("pip ended with 1. See the log.")

    monkeypatch.setattr(prepare, "make_environment", make_environment)
    monkeypatch.setattr(prepare, "make_model", lambda system, settings, work: None)
    failed: dict[str, str] = {}
    ready = program.prepared(SYSTEMS, {}, tmp_path, failed)
    assert set(failed) == {"llama.cpp Q8_0", "llama.cpp Q4_0"}
    assert len(ready) == len(SYSTEMS) - 2


@pytest.mark.parametrize("arguments", [["--new-tokens", "1"], ["--rounds", "0"], ["--peers", "x"]])
def test_program_refuses_what_it_cannot_measure(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.parse(["--work", "peers", *arguments])


def test_shape_is_that_of_qwen() -> None:
    facts = facts_of(text_config(tiny=False))
    assert (facts.layers, facts.hidden_size, facts.heads, facts.kv_heads) == (24, 896, 14, 2)
    assert (facts.head_dim, facts.vocab_size) == (64, 151_936)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.23.self_attn.k_proj.bias", "blk.23.attn_k.bias"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
    ],
)
def test_tensors_have_ggufs_names(ours: str, theirs: str) -> None:
    assert gguf_name(ours) == theirs


@pytest.mark.parametrize("name", ["visual.proj.weight", "model.layers.1.mlp.router.weight"])
def test_unknown_tensor_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a tensor of Qwen2"):
        gguf_name(name)


def test_gguf_holds_all_weights_in_the_type_asked_for(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings = text_config(tiny=True)
    config = Qwen2Config(**{k: v for k, v in settings.items() if k != "model_type"})
    model: Any = Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path / "weights")
    write(tmp_path / "weights", tmp_path / "model.gguf", "Q4_0")
    assert [path.name for path in tmp_path.glob("*.part")] == []
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["qwen2.vocab_size"].contents() == 512
    assert reader.fields["qwen2.attention.head_count_kv"].contents() == 1
    assert reader.fields["tokenizer.ggml.model"].contents() == "none"
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = {
        gguf_name(name): one for name, one in model.state_dict().items() if "lm_" not in name
    }
    assert set(stored) == set(weights)
    for name, tensor in stored.items():
        wanted = "F32" if weights[name].ndim == 1 else "Q4_0"
        assert tensor.tensor_type.name == ("Q8_0" if name == "token_embd.weight" else wanted)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        exact = weights[name].numpy()
        assert values.shape == exact.shape
        assert np.abs(values - exact).max() <= np.abs(exact).max() / 7
