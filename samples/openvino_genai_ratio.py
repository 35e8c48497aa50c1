"""Time our OpenVINO language model against openvino_genai on optimum-intel's export of its weights.

python samples/openvino_genai_ratio.py --work peer/ --json genai.json

Made in `--work`, and used again if they are there: random weights of Qwen2.5-0.5B's shape, our int8
decoder, a virtual environment with optimum-intel, and its int8 export of the same weights. Both
sides then take turns in one process, so that a machine that warms up or is disturbed slows both
alike. openvino_genai runs with both of its attention backends. Prompts are new in every round: its
paged attention remembers prompts that it has seen.

On a machine that others use as well, `--threads 1 --cpu-time` counts the processor time that each
side took instead of the time that passed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from laco_deploy.model.presets import LANGUAGE_PRESETS
from laco_runtimes.bundle import write_atomic
from laco_runtimes.engines.base import LoadRequest
from laco_runtimes.engines.openvino import import_openvino, load
from laco_runtimes.manifest import EngineFacts, LanguageFacts, MergerFacts, Variant, VisionFacts

PRESET = "qwen2.5-0.5b"

PEER_PACKAGES = (
    "huggingface-hub<1.22",
    "nncf",
    "openvino",
    "openvino-tokenizers",
    "optimum==2.3.0",
    "requests",
    "torch==2.13.0",  # as in constraints.txt: of any other a mirror may have no small CPU build
    "transformers==5.5.4",
)
"""What optimum-intel 2.2.0 needs to export a language model. It also asks for torchvision, which is
not needed for that and not built for every torch, so itself is installed without dependencies."""
PEER = "optimum-intel==2.2.0"

OURS = "ours"
BACKENDS = ("SDPA", "PA")

Times = tuple[float, float]
"""Time to the first token and per further token, in seconds."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Runner:
    """One system under test."""

    name: str
    run: Callable[[list[int], int], Times]
    """Token ids of a prompt and how many tokens to make."""
    first: dict[int, list[float]] = field(default_factory=dict)
    """Times to the first token by length of the prompt, one for each round."""
    step: dict[int, list[float]] = field(default_factory=dict)


def facts_of(preset: str) -> LanguageFacts:
    """Shapes of a language model that is known by name."""
    config = LANGUAGE_PRESETS[preset].config()
    return LanguageFacts(
        model_type="qwen2",
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
    )


def write_weights(work: Path) -> None:
    """Random weights as a Hugging Face folder, and our graphs of them in fp32."""
    import torch
    from transformers import Qwen2ForCausalLM

    from laco_export.graphs import DecoderGraph, EmbedGraph
    from laco_export.onnx_writer import write_graph
    from laco_runtimes import graphs

    config: Any = LANGUAGE_PRESETS[PRESET].config()
    facts = facts_of(PRESET)
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(config)
    model.eval()
    embed, decoder = graphs.embed_tokens(facts.hidden_size), graphs.decoder(facts)
    write_graph(EmbedGraph(model.model.embed_tokens), embed, work / "onnx")
    theta = config.rope_parameters["rope_theta"]
    graph = DecoderGraph(model.model, model.lm_head, head_dim=facts.head_dim, rope_theta=theta)
    write_graph(graph, decoder, work / "onnx")
    model.save_pretrained(work / "weights")


def compile_ours(work: Path) -> None:
    """Our int8 decoder and embeddings, in `openvino/`."""
    from laco_export.targets import CompileRequest
    from laco_export.targets.openvino import TARGET
    from laco_runtimes import graphs

    facts = facts_of(PRESET)
    vision = VisionFacts(model_type="none", blocks=1, width=1, image_size=1, patch_size=1)
    specs = (graphs.embed_tokens(facts.hidden_size), graphs.decoder(facts))
    for spec in specs:
        TARGET.compile(
            CompileRequest(
                root=work,
                onnx=f"onnx/{spec.name}.onnx",
                spec=spec,
                language=facts,
                vision=vision,
                precision="int8",
            )
        )


def make_peer(environment: Path) -> None:
    """A virtual environment with optimum-intel, from the package index that pip is set to."""
    venv.create(environment, with_pip=True)
    pip = (str(environment / "bin" / "pip"), "install", "--quiet")
    subprocess.run((*pip, *PEER_PACKAGES), check=True)
    subprocess.run((*pip, "--no-deps", PEER), check=True)


def export_peer(work: Path, tokenizer: Path) -> None:
    """optimum-intel's int8 export, with any tokenizer: prompts are given as ids."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, work / "weights" / name)
    command = (
        *(str(work / "environment" / "bin" / "optimum-cli"), "export", "openvino"),
        *("--task", "text-generation-with-past", "--weight-format", "int8"),
        *("--model", str(work / "weights"), str(work / "peer")),
    )
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def our_runner(work: Path, threads: int | None, clock: Clock) -> Runner:
    """The engine of a bundle, from token ids to token ids."""
    from laco_export.targets.openvino_genai import FOLDER, GENAI_NAMES

    paths = {name: f"{FOLDER}/{stem}.xml" for name, stem in GENAI_NAMES.items()}
    facts = EngineFacts(
        target="openvino",
        precision=dict.fromkeys(("vision_encoder", "embed_tokens", "decoder"), "int8"),
        language=facts_of(PRESET),
        vision=VisionFacts(model_type="none", blocks=1, width=1, image_size=1, patch_size=1),
        embed_tokens=paths["embed_tokens"],
        decoder=paths["decoder"],
    )
    variant = Variant(
        name="laco",
        mergers=(MergerFacts(kind="laco", after_block=1, ratio=2),),
        merged_grid=(1, 1),
        vision_encoder=_stand_in(work, facts.language.hidden_size),
        latency_only=True,
    )
    language = load(LoadRequest(work, facts, variant, "cpu", threads)).language

    def run(ids: list[int], count: int) -> Times:
        language.rewind(0)
        start = clock()
        token = int(np.argmax(language.prefill(language.embed(ids))))
        times = [clock()]
        for _ in range(count - 1):
            token = int(np.argmax(language.step(token)))
            times.append(clock())
        return _times(start, times)

    return Runner(OURS, run)


def _stand_in(work: Path, width: int) -> str:
    """An encoder of one pixel: the engine wants one, and nobody asks it anything."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, 3, 1, 1], openvino.Type.f32, name="pixel_values")
    pixels.output(0).set_names({"pixel_values"})
    flat = ops.reshape(pixels, np.array([0, 1, 3]), special_zero=True)
    features = ops.matmul(flat, np.zeros((3, width), np.float32), False, False)
    features.output(0).set_names({"image_features"})
    openvino.save_model(openvino.Model([features], [pixels]), work / "stand_in.xml")
    return "stand_in.xml"


def peer_runner(folder: Path, backend: str, threads: int | None, clock: Clock) -> Runner:
    """openvino_genai, told to report every token."""
    openvino, genai = import_openvino(), importlib.import_module("openvino_genai")
    limit = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    pipeline = genai.LLMPipeline(str(folder), "CPU", ATTENTION_BACKEND=backend, **limit)

    class Watch(genai.StreamerBase):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def write(self, token: int | list[int]) -> Any:
            self.times += [clock()] * (len(token) if isinstance(token, list) else 1)
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is held back."""

    def run(ids: list[int], count: int) -> Times:
        watch = Watch()
        start = clock()
        tokens = genai.TokenizedInputs(
            openvino.Tensor(np.array([ids], np.int64)),
            openvino.Tensor(np.ones((1, len(ids)), np.int64)),
        )
        pipeline.generate(
            tokens, max_new_tokens=count, ignore_eos=True, do_sample=False, streamer=watch
        )
        return _times(start, watch.times)

    return Runner(f"openvino_genai {backend}", run)


def _times(start: float, tokens: Sequence[float]) -> Times:
    return tokens[0] - start, (tokens[-1] - tokens[0]) / (len(tokens) - 1)


def measure(runners: Sequence[Runner], lengths: Sequence[int], tokens: int, rounds: int) -> None:
    """All runners in turns on the same prompts; the first round is not counted."""
    random = np.random.default_rng(0)
    vocabulary = facts_of(PRESET).vocab_size
    for number in range(rounds + 1):
        for length in lengths:
            ids = random.integers(0, vocabulary, length).tolist()
            turn = number % len(runners)  # so that none always follows the same one
            for runner in (*runners[turn:], *runners[:turn]):
                first, step = runner.run(ids, tokens)
                if number:
                    runner.first.setdefault(length, []).append(first)
                    runner.step.setdefault(length, []).append(step)
        print(f"round {number} of {rounds}", file=sys.stderr)


def rows(runners: Sequence[Runner]) -> list[dict[str, Any]]:
    """One row for each system, length and time; `ratio` is ours over theirs."""
    ours = next(runner for runner in runners if runner.name == OURS)
    return [
        {
            "system": runner.name,
            "prompt_tokens": length,
            "time": what,
            "min_ms": 1e3 * min(seconds),
            "median_ms": 1e3 * statistics.median(seconds),
            "min_ratio": min(own[length]) / min(seconds),
            "median_ratio": statistics.median(
                one / two for one, two in zip(own[length], seconds, strict=True)
            ),
        }
        for what, own in (("first token", ours.first), ("per token", ours.step))
        for length in own
        for runner in runners
        for seconds in [(runner.first if own is ours.first else runner.step)[length]]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--tokenizer", type=Path, default=Path("samples/laco-tiny"))
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[288, 1056])
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="by default each system's own choice")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not real time")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    work: Path = options.work
    stages: tuple[tuple[Path, Callable[[], None]], ...] = (
        (work / "weights" / "model.safetensors", lambda: write_weights(work)),
        (work / "openvino" / "openvino_language_model.xml", lambda: compile_ours(work)),
        (work / "environment" / "bin" / "optimum-cli", lambda: make_peer(work / "environment")),
        (
            work / "peer" / "openvino_model.xml",
            lambda: export_peer(work, options.tokenizer),
        ),
    )
    for made, make in stages:
        if not made.exists():
            print(f"making {made}", file=sys.stderr)
            make()
    clock = time.process_time if options.cpu_time else time.perf_counter
    runners = [our_runner(work, options.threads, clock)]
    runners += [peer_runner(work / "peer", name, options.threads, clock) for name in BACKENDS]
    measure(runners, options.prompt_tokens, options.new_tokens, options.rounds)
    figures = rows(runners)
    print("| time | prompt | system | min ms | median ms | ours / it, min | ours / it, median |")
    print("|---|---|---|---|---|---|---|")
    for row in figures:
        print(
            f"| {row['time']} | {row['prompt_tokens']} | {row['system']} | {row['min_ms']:.1f} "
            f"| {row['median_ms']:.1f} | {row['min_ratio']:.3f} | {row['median_ratio']:.3f} |"
        )
    if options.json:
        write_atomic(options.json, (json.dumps(figures, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
