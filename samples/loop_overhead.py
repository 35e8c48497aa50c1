"""Time everything in a chat but the engine: what Python costs per token.

python samples/loop_overhead.py --tokens 512 --runs 15

The engine is a fake one that has its logits ready, for a vocabulary of 151,936 tokens (that of
Qwen2.5); its own time is taken off. What is left is picking tokens, turning them into text, stop
strings, prompt lookup and the bookkeeping of `Pipeline`. The cost of a token is that of a long
answer less that of an answer of one token. CPU time is what counts on a machine that others use
too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from laco_runtimes.engines.base import Capabilities, Floats, LoadedEngine, check_rewind
from laco_runtimes.images import Preprocessing
from laco_runtimes.manifest import (
    FORMAT_VERSION,
    MAIN_VARIANT,
    BundleFacts,
    LanguageFacts,
    Variant,
    VisionFacts,
)
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.prompt import chatml, load_tokenizer
from laco_runtimes.sources import KINDS, Source, SourceKind, SourceRequest

TOKENIZER = Path(__file__).parent / "laco-tiny" / "tokenizer.json"
VOCABULARY = 151_936
WIDTH = 896
PROMPT = "What is on the table, and what colour is it?"
FILE = "nothing.bin"
LIMIT_MS = 0.3

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, repetition penalty": {"repetition_penalty": 1.1},
    "greedy, two stop strings": {"stop": ("\n\nUser:", "</answer>")},
    "greedy, prompt lookup": {"prompt_lookup": 8},
    "greedy, 5 log-probabilities": {"logprobs": 5},
    "temperature 0.7, top-k 20, top-p 0.8": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "temperature 0.7, min-p 0.05": {"temperature": 0.7, "min_p": 0.05},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1": {"temperature": 1.0},
}


@dataclass(frozen=True)
class Row:
    """One setting; milliseconds per token, without the engine."""

    name: str
    cpu_ms: float
    """Median over the runs, of the thread's CPU time."""
    wall_ms: float
    """The same of the time that passed."""


class FakeEngine:
    """Says the same few words over and over. Its calls are timed, to be taken off."""

    def __init__(self, words: Sequence[int]) -> None:
        random = np.random.default_rng(0)
        rows = random.normal(0, 2.5, (len(words), VOCABULARY)).astype(np.float32)
        # As a language model's: a favourite, and a few dozen others that are not impossible.
        for row, word in zip(rows, words, strict=True):
            row[random.integers(0, VOCABULARY, 40)] = np.linspace(17, 12, 40)
            row[word] = 20
        self._rows = rows
        self.length = 0
        self.cpu_ns = self.wall_ns = 0

    def encode(self, pixel_values: Floats) -> Floats:
        """One visual token per tile."""
        return np.zeros((len(pixel_values), 1, WIDTH), np.float32)

    def embed(self, ids: Sequence[int]) -> Floats:
        """[len(ids), D], all the same."""
        return self._timed(lambda: np.zeros((len(ids), WIDTH), np.float32))

    def prefill(self, embeds: Floats) -> Floats:
        """Logits of the last position, [V]."""
        return self._timed(lambda: self._append(len(embeds))[-1])

    def step(self, token: int) -> Floats:
        """The same, one token later."""
        return self._timed(lambda: self._append(1)[0])

    def score(self, tokens: Sequence[int]) -> Floats:
        """Logits behind each token, [len(tokens), V]."""
        return self._timed(lambda: self._append(len(tokens)))

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        check_rewind(length, self.length)
        self.length = length

    def _append(self, count: int) -> Floats:
        places = np.arange(self.length, self.length + count) % len(self._rows)
        self.length += count
        return self._rows[places[-64:]]  # no draft is longer

    def _timed(self, call: Callable[[], Floats]) -> Floats:
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        value = call()
        self.cpu_ns += time.thread_time_ns() - cpu
        self.wall_ns += time.perf_counter_ns() - wall
        return value


def fake_pipeline(folder: Path, context: int) -> tuple[Pipeline, FakeEngine]:
    """A pipeline on the fake engine, and the engine."""
    tokenizer = load_tokenizer(TOKENIZER)
    engine = FakeEngine(tokenizer.encode("The green cup stands left of the red one. ").ids)
    image = int(tokenizer.token_to_id("<|image_pad|>") or 0)
    variant = Variant(
        name=MAIN_VARIANT, mergers=(), merged_grid=(1, 1), vision_encoder=FILE, latency_only=False
    )
    facts = BundleFacts(
        format_version=FORMAT_VERSION,
        created_by="samples/loop_overhead.py",
        target="fake",
        precision=dict.fromkeys(("vision_encoder", "embed_tokens", "decoder"), "none"),
        language=LanguageFacts(
            model_type="fake",
            layers=1,
            hidden_size=WIDTH,
            heads=1,
            kv_heads=1,
            head_dim=WIDTH,
            vocab_size=VOCABULARY,
            max_positions=context,
        ),
        vision=VisionFacts(model_type="fake", blocks=1, width=1, image_size=28, patch_size=14),
        embed_tokens=FILE,
        decoder=FILE,
        preprocessing=Preprocessing(image_size=28, mean=(0.5,) * 3, std=(0.5,) * 3),
        prompt=chatml(tokenizer, image_token_id=image),
        variants=(variant,),
        parity=None,
        unverified="there is no model",
        versions={},
    )

    def load(request: SourceRequest) -> Source:
        able = Capabilities(scores=True, rewinds=True, batches_tiles=True)
        return Source(
            facts=facts,
            tokenizer=TOKENIZER,
            variant=variant,
            engine=LoadedEngine(engine, engine, "fake", "its answers are ready", able),
            newline=None,
            unverified=None,
        )

    KINDS["fake"] = SourceKind(lambda root: root == folder, load)
    return Pipeline(folder), engine


def measure(pipeline: Pipeline, engine: FakeEngine, tokens: int, runs: int) -> list[Row]:
    """All cases in turn, `runs` times over."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}

    def cost(count: int, settings: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        engine.cpu_ns = engine.wall_ns = 0
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        reply = pipeline.chat(None, PROMPT, max_new_tokens=count, seed=0, **settings)
        spent = np.array([time.thread_time_ns() - cpu, time.perf_counter_ns() - wall], float)
        if reply.new_tokens != count:
            raise RuntimeError(f"{reply.new_tokens} tokens came, not {count}.")
        return spent - [engine.cpu_ns, engine.wall_ns]

    for run in range(runs + 1):
        for name, settings in CASES.items():
            cpu, wall = (cost(tokens, settings) - cost(1, settings)) / (tokens - 1) / 1e6
            if run:  # the first is a warm-up
                found[name].append((float(cpu), float(wall)))
    return [
        Row(name, *map(statistics.median, zip(*rows, strict=True))) for name, rows in found.items()
    ]


def main() -> int:
    """Print the table; the exit code is 3 where greedy decoding costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512, help="length of the long answer")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        pipeline, engine = fake_pipeline(Path(folder), options.tokens + 1000)
        rows = measure(pipeline, engine, max(options.tokens, 2), max(options.runs, 1))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(f"{'per token, without the engine':<40} {'CPU ms':>8} {'wall ms':>8}")
        for row in rows:
            print(f"{row.name:<40} {row.cpu_ms:>8.3f} {row.wall_ms:>8.3f}")
        print(f"limit for greedy decoding: {LIMIT_MS} ms")
    return 0 if rows[0].cpu_ms < LIMIT_MS else 3


if __name__ == "__main__":
    raise SystemExit(main())
