"""Where a decoding step of OpenVINO goes: by kernel, beside what memory can deliver.

python -m samples.step_profile engine/ --past 288

Times a step of our engine and a bare inference of the file as it is in turns, both with as many
tokens in the KV cache, then sums profiled steps of ours by kernel. A step reads every weight once,
so that its least time is the decoder's file over the memory bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from laco_deploy.benchmark.rates import measure_rates
from laco_runtimes.bundle import Bundle, open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import Floats, LoadRequest
from laco_runtimes.engines.openvino import latency_config, openvino_core, prepare_decoder
from laco_runtimes.engines.openvino_language import Embed
from laco_runtimes.engines.openvino_paged import PagedLanguage
from laco_runtimes.engines.openvino_stateful import StatefulLanguage
from laco_runtimes.errors import LacoError

WARM_UP = 3
CONFIG = {"PERFORMANCE_HINT": "LATENCY"}

Nodes = dict[str, tuple[str, float]]
"""By the node's name: its kernel, and milliseconds."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """All nodes of one step that run one kernel."""

    name: str
    milliseconds: float
    nodes: int


@dataclass(frozen=True, slots=True)
class StepProfile:
    """Milliseconds, medians."""

    past: int
    prefill: float
    """Our engine, `past` tokens."""
    ours: float
    """A step of our engine: look-up of the embedding, inference, copy of the logits."""
    bare: float
    """An inference of the file, unchanged and without our engine around it."""
    profiled: float
    """Mean of the steps whose kernels these are; what they leave is between them."""
    kernels: tuple[Kernel, ...]
    """Of a step in a profiled model, longest first."""
    weight_bytes: int
    memory_gb_per_s: float | None

    @property
    def least(self) -> float | None:
        """Milliseconds to read the weights."""
        rate = self.memory_gb_per_s
        return None if rate is None else self.weight_bytes / rate / 1e6


class Bare:
    """The decoder's file without our engine around it."""

    def __init__(self, bundle: Bundle) -> None:
        path = bundle.root / bundle.manifest.decoder
        model = openvino_core().compile_model(path, "CPU", CONFIG)
        self.request = model.create_infer_request()
        self.length = 0

    def feed(self, embeds: Floats) -> None:
        """[n, D] behind what it has seen."""
        end = self.length + len(embeds)
        inputs = {
            "inputs_embeds": embeds[None],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.length, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.request.infer(inputs, share_inputs=True)
        self.length = end


class Profiled:
    """Our engine's decoder, which tells what its kernels took."""

    def __init__(self, bundle: Bundle, embed: Embed) -> None:
        facts, self.runs = bundle.manifest.language, 0
        core = openvino_core()
        graph = core.read_model(bundle.root / bundle.manifest.decoder)
        prepared = prepare_decoder(core, graph, facts.layers)
        config = {**latency_config(core, "CPU"), "PERF_COUNT": True}
        compiled = core.compile_model(prepared.model, "CPU", config)
        self._request = compiled.create_infer_request()
        kind = (
            PagedLanguage if prepared.paged else partial(StatefulLanguage, scores=prepared.scores)
        )
        self._language = kind(embed, lambda: self._request, facts.max_positions)

    def feed(self, embeds: Floats) -> None:
        """[n, D] behind what it has seen."""
        self._language.prefill(embeds)
        self.runs += 1

    def nodes(self) -> Nodes:
        """Kernel and milliseconds of each node, the mean of all runs so far."""
        return {
            node.node_name: (
                f"{node.node_type} {node.exec_type}",
                1e3 * node.real_time.total_seconds(),
            )
            for node in self._request.profiling_info
        }


def kernels(before: Nodes, runs: int, after: Nodes, more: int) -> tuple[Kernel, ...]:
    """A step by kernel: what the later of all `more` runs took, without the first `runs` of them.

    OpenVINO tells means over all runs, and the first of them was the whole prompt.
    """
    found: dict[str, tuple[float, int]] = {}
    for node, (kernel, mean) in after.items():
        earlier = before[node][1] if node in before else 0.0
        time_ms = (mean * more - earlier * runs) / (more - runs)
        if time_ms > 0:
            total, nodes = found.get(kernel, (0.0, 0))
            found[kernel] = total + time_ms, nodes + 1
    kernels = (Kernel(name, *values) for name, values in found.items())
    return tuple(sorted(kernels, key=lambda one: -one.milliseconds))


def profile(bundle: Bundle, past: int, steps: int) -> StepProfile:
    """Measure in this process.

    Raises:
        LacoError: the bundle's engine is not OpenVINO's, or refuses.
    """
    variant = bundle.variant("laco")
    language = load_engine(LoadRequest(bundle.root, bundle.manifest, variant, "cpu")).language
    bare, profiled = Bare(bundle), Profiled(bundle, language.embed)
    ids = np.random.default_rng(0).integers(0, bundle.manifest.language.vocab_size, past + 1)
    embeds = language.embed(ids.tolist())
    prefills: list[float] = []
    for _ in range(3):
        language.rewind(0)
        start = time.perf_counter()
        language.prefill(embeds[:past])
        prefills.append(1e3 * (time.perf_counter() - start))
    bare.feed(embeds[:past])
    profiled.feed(embeds[:past])
    token, last = int(ids[-1]), embeds[-1:]
    ours: list[float] = []
    others: list[float] = []
    for number in range(WARM_UP + steps):
        start = time.perf_counter()
        language.step(token)
        middle = time.perf_counter()
        bare.feed(last)
        end = time.perf_counter()
        if number >= WARM_UP:
            ours.append(1e3 * (middle - start))
            others.append(1e3 * (end - middle))
    before, runs = profiled.nodes(), profiled.runs
    start = time.perf_counter()
    for _ in range(steps):
        profiled.feed(last)
    mean = 1e3 * (time.perf_counter() - start) / steps
    return StepProfile(
        past=past,
        prefill=statistics.median(prefills),
        ours=statistics.median(ours),
        bare=statistics.median(others),
        profiled=mean,
        kernels=kernels(before, runs, profiled.nodes(), profiled.runs),
        weight_bytes=(bundle.root / bundle.manifest.decoder).with_suffix(".bin").stat().st_size,
        memory_gb_per_s=measure_rates("openvino", "CPU", None).memory_gb_per_s,
    )


def table(found: StepProfile) -> str:
    """For people."""
    whole = sum(one.milliseconds for one in found.kernels)
    lines = [
        f"prefill of {found.past} tokens: ours {found.prefill:.0f} ms",
        f"step behind {found.past} tokens: ours {found.ours:.1f} ms, bare {found.bare:.1f} ms",
        f"weights {found.weight_bytes / 1e6:.0f} MB"
        + (
            ""
            if found.least is None
            else f", at {found.memory_gb_per_s:.1f} GB/s at least {found.least:.1f} ms"
        ),
        f"a profiled step took {found.profiled:.1f} ms, its kernels {whole:.1f} ms of it",
        *(
            f"{one.milliseconds:8.2f} ms {one.milliseconds / whole:6.1%} {one.nodes:4d}  {one.name}"
            for one in found.kernels
        ),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", type=Path, help="bundle for OpenVINO")
    parser.add_argument("--past", type=int, default=288, help="tokens in the KV cache")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    try:
        found = profile(open_bundle(options.engine), options.past, options.steps)
    except LacoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
