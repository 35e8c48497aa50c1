"""Time our Pipeline against openvino_genai.VLMPipeline on the same exported folders.

python samples/openvino_vlm_ratio.py engine-int8/ engine-int4/ --json vlm.json

Both systems load `openvino/` of each bundle and answer the same question about the same images, in
turns and in one process, so that a machine that warms up or is disturbed slows both alike. Images
are new in every request and as large as the encoder's, so nothing is remembered and nothing is
resized. A token counts when its text was handed out, the last one when the answer is returned.

Launches differ by more than the systems do: `--launches 6` asks in six processes, each of which
loads the systems in another order, and gives the median of their ratios. For the time per token
alone, `--text-only` leaves out the images, which are most of a request; `--threads 1 --cpu-time`
counts the processor time that each side took, for a machine that others use as well.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from laco_deploy import Pipeline
from laco_runtimes.bundle import write_atomic
from laco_runtimes.engines import ENGINES
from laco_runtimes.engines.base import Floats, LanguageModel, LoadedEngine, LoadRequest
from laco_runtimes.engines.openvino import import_openvino
from laco_runtimes.errors import EngineError, LacoError
from laco_runtimes.generation import REPLACEMENT

OURS = "ours"
BACKENDS = ("SDPA", "PA")
FOLDER = "openvino"

Image = NDArray[np.uint8]
"""[S, S, 3]"""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said, and when."""

    text: str
    first: float
    """Seconds to the first token."""
    step: float | None
    """Seconds per further token; None where there is none."""


@dataclass(frozen=True, slots=True)
class System:
    """One system under test on one bundle."""

    name: str
    ask: Callable[[Image | None, str, int], Answer]
    """An image or none, a prompt, and how many tokens to make at most."""
    answers: list[Answer] = field(default_factory=list)
    """One for each round."""


def timed(start: float, times: Sequence[float], text: str) -> Answer:
    """The answer whose tokens were handed out at these times."""
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    return Answer(text, times[0] - start, step)


class Watch:
    """A language model that notes when it is asked for a step: the token before is out then."""

    def __init__(self, language: LanguageModel, clock: Clock) -> None:
        self._language, self._clock = language, clock
        self.times: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._language, name)

    def step(self, token: int) -> Floats:
        """See `LanguageModel`."""
        self.times.append(self._clock())
        return self._language.step(token)


def our_system(bundle: Path, threads: int | None, clock: Clock) -> System:
    """The whole `Pipeline`, made to forget before every request."""
    watches: list[Watch] = []
    plain = ENGINES[FOLDER]

    def load(request: LoadRequest) -> LoadedEngine:
        engine = plain.load(request)
        watches.append(Watch(engine.language, clock))
        return replace(engine, language=cast(LanguageModel, watches[0]))

    ENGINES[FOLDER] = replace(plain, load=load)
    try:
        pipeline = Pipeline(bundle, device="cpu", threads=threads, feature_cache_bytes=0)
    finally:
        ENGINES[FOLDER] = plain

    def ask(image: Image | None, prompt: str, count: int) -> Answer:
        pipeline.forget()
        watches[0].times.clear()
        start = clock()
        reply = pipeline.chat(image, prompt, max_new_tokens=count, on_text=lambda text: None)
        return timed(start, [*watches[0].times, clock()], reply.text)

    return System(OURS, ask)


def peer_system(bundle: Path, backend: str, threads: int | None, clock: Clock) -> System:
    """openvino_genai's pipeline on the bundle's `openvino/` as it is."""
    openvino, genai = import_openvino(), importlib.import_module("openvino_genai")
    limit = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    pipeline = genai.VLMPipeline(str(bundle / FOLDER), "CPU", ATTENTION_BACKEND=backend, **limit)

    class Streamer(genai.StreamerBase):  # type: ignore[misc, name-defined]
        """Its own streamer of text, and when each token was through it."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []
            self._text = genai.TextStreamer(
                pipeline.get_tokenizer(), lambda text: genai.StreamingStatus.RUNNING
            )

        def write(self, token: int | list[int]) -> Any:
            status = self._text.write(token)
            self.times += [clock()] * (len(token) if isinstance(token, list) else 1)
            return status

        def end(self) -> None:
            self._text.end()

    def ask(image: Image | None, prompt: str, count: int) -> Answer:
        streamer = Streamer()
        start = clock()
        answer = pipeline.generate(
            prompt,
            images=[] if image is None else [openvino.Tensor(image[None])],
            max_new_tokens=count,
            do_sample=False,
            streamer=streamer,
        )
        # Its streamer runs on a thread of its own; what ends the answer is that it is returned.
        times = [*streamer.times[:-1], clock()]
        # We leave a character out that the last token cut in two.
        return timed(start, times, str(answer.texts[0]).rstrip(REPLACEMENT))

    return System(f"openvino_genai {backend}", ask)


def images(side: int) -> Iterator[Image]:
    """Gradients with noise, no two alike."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, side)[:, None, None]
    while True:
        yield (ramp + random.uniform(0, 55, (side, side, 3))).astype(np.uint8)


def text_alone(prompt: str) -> Iterator[tuple[None, str]]:
    """Prompts of which no two begin alike: paged attention remembers beginnings."""
    for number in itertools.count():
        yield None, f"{number}. {prompt}"


def measure(
    systems: Sequence[System],
    asked: Iterator[tuple[Image | None, str]],
    tokens: int,
    rounds: int,
) -> None:
    """All systems in turns on the same images; the first round is not counted."""
    for number in range(rounds + 1):
        image, prompt = next(asked)
        turn = number % len(systems)  # so that none always follows the same one
        for system in (*systems[turn:], *systems[:turn]):
            answer = system.ask(image, prompt, tokens)
            if number:
                system.answers.append(answer)
        print(f"round {number} of {rounds}", file=sys.stderr)


def rows(bundle: str, systems: Sequence[System]) -> list[dict[str, Any]]:
    """One row for each system and time; `ratio` is ours over theirs."""
    ours = next(system for system in systems if system.name == OURS)
    found = []
    for what in ("first", "step"):
        for system in systems:
            pairs: list[tuple[float, float]] = [
                (getattr(one, what), getattr(two, what))
                for one, two in zip(ours.answers, system.answers, strict=True)
                if getattr(one, what) is not None and getattr(two, what) is not None
            ]
            if not pairs:
                continue  # answers of one token have no time per token
            own, seconds = zip(*pairs, strict=True)
            same = [
                one.text == two.text for one, two in zip(ours.answers, system.answers, strict=True)
            ]
            found.append(
                {
                    "bundle": bundle,
                    "system": system.name,
                    "time": {"first": "first token", "step": "per token"}[what],
                    "min_ms": 1e3 * min(seconds),
                    "median_ms": 1e3 * statistics.median(seconds),
                    "min_ratio": min(own) / min(seconds),
                    "median_ratio": statistics.median(one / two for one, two in pairs),
                    "same_answers": sum(same),
                    "rounds": len(same),
                }
            )
    return found


def launched(options: argparse.Namespace, order: int) -> list[dict[str, Any]]:
    """Load each bundle's systems in one of their orders, and measure; one bundle after the other.

    Raises:
        LacoError: a bundle that cannot be loaded.
    """
    clock = time.process_time if options.cpu_time else time.perf_counter
    figures = []
    for bundle in options.bundles:
        loads = [partial(our_system, bundle, options.threads, clock)] + [
            partial(peer_system, bundle, name, options.threads, clock) for name in options.backends
        ]
        orders = list(itertools.permutations(loads))
        loaded = {load: load() for load in orders[order % len(orders)]}
        systems = [loaded[load] for load in loads]
        side = json.loads((bundle / "laco.json").read_text())["preprocessing"]["image_size"]
        pictures = ((image, options.prompt) for image in images(side))
        asked = text_alone(options.prompt) if options.text_only else pictures
        measure(systems, asked, options.new_tokens, options.rounds)
        figures += rows(str(bundle), systems)
    return figures


def in_processes(arguments: Sequence[str], launches: int) -> list[list[dict[str, Any]]]:
    """The figures of this program in as many processes, one after the other.

    Raises:
        EngineError: one of them failed.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "launch.json")
        for order in range(launches):
            print(f"launch {order + 1} of {launches}", file=sys.stderr)
            own = ["--launches", "1", "--order", str(order), "--json", str(out)]
            command = [sys.executable, __file__, *arguments, *own]
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
                raise EngineError(f"launch {order + 1} failed. Its message stands above.")
            found.append(json.loads(out.read_text()))
    return found


def together(launches: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row from the same row of each launch: medians, and from where to where ratios went."""
    found = []
    for same in zip(*launches, strict=True):
        row = dict(same[0])
        row["launches"] = len(same)
        for key in ("min_ms", "median_ms", "min_ratio", "median_ratio"):
            row[key] = statistics.median(one[key] for one in same)
        for key in ("min_ratio", "median_ratio"):
            row[f"{key}_range"] = [pick(one[key] for one in same) for pick in (min, max)]
        for key in ("same_answers", "rounds"):
            row[key] = sum(one[key] for one in same)
        found.append(row)
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""

    def ratio(key: str) -> str:
        low, high = row[f"{key}_range"]
        spread = f" ({low:.3f} to {high:.3f})" if row["launches"] > 1 else ""
        return f"{row[key]:.3f}{spread}"

    return (
        f"| {row['bundle']} | {row['time']} | {row['system']} | {row['min_ms']:.2f} "
        f"| {row['median_ms']:.2f} | {ratio('min_ratio')} | {ratio('median_ratio')} "
        f"| {row['same_answers']} of {row['rounds']} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundles", type=Path, nargs="+", help="exported with --target openvino")
    parser.add_argument("--prompt", default="What is in the picture?")
    parser.add_argument("--text-only", action="store_true", help="no image, the prompt alone")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--launches", type=int, default=1, help="processes, one after the other")
    parser.add_argument("--order", type=int, default=0, help="which order to load the systems in")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--threads", type=int, help="by default each system's own choice")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not real time")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.new_tokens < 2:
        parser.error("there must be a round, and two tokens to have a time per token")
    if options.launches < 1 or options.order < 0:
        parser.error("there must be a launch, and an order is 0 or more")
    for bundle in options.bundles:
        if not (bundle / FOLDER).is_dir():
            parser.error(f"{bundle} is not for OpenVINO. Export it with --target openvino.")
    try:
        if options.launches > 1:
            given = sys.argv[1:] if arguments is None else arguments
            launches = in_processes(given, options.launches)
        else:
            launches = [launched(options, options.order)]
    except LacoError as error:
        parser.error(str(error))
    figures = together(launches)
    print("| bundle | time | system | min ms | median ms | ours / it, min | median | same text |")
    print("|---|---|---|---|---|---|---|---|")
    for row in figures:
        print(line(row))
    if options.json:
        write_atomic(options.json, (json.dumps(figures, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
