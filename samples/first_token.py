"""Time to first token: of a second question about the same image, and against no compression.

python samples/first_token.py engine/ --rounds 5 --new-tokens 4

In each round every variant of the bundle answers two questions about an image that it has not seen:
the first turn of a dialogue, and a second one of about 20 new tokens. The order of variants turns
from round to round; all run in one process, and ratios are of the same round. Counters say what was
done: images encoded and tokens prefilled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from laco_deploy import Pipeline
from laco_runtimes.bundle import open_bundle, write_atomic
from laco_runtimes.errors import LacoError
from laco_runtimes.manifest import MAIN_VARIANT

FIRST = "Describe the image."
SECOND = "And what is in the corner of it?"
UNCOMPRESSED = "uncompressed"


@dataclass(frozen=True, slots=True)
class Turns:
    """Two turns of one dialogue."""

    variant: str
    first_ms: float
    second_ms: float
    second_prefilled: int
    """Tokens."""
    second_encode_ms: float
    encoded: int
    """Images in both turns together."""
    visual_tokens: int


def ask(name: str, pipeline: Pipeline, seed: int, new_tokens: int) -> Turns:
    """Two turns about an image of noise that only this round has."""
    side = pipeline.facts.preprocessing.image_size
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pipeline.forget()
    before = pipeline.feature_cache.misses
    history = pipeline.new_history()
    first = pipeline.chat(image, FIRST, history=history, max_new_tokens=new_tokens)
    second = pipeline.chat(None, SECOND, history=history, max_new_tokens=new_tokens)
    return Turns(
        variant=name,
        first_ms=first.timings.ttft_ms,
        second_ms=second.timings.ttft_ms,
        second_prefilled=second.prefilled_tokens,
        second_encode_ms=second.timings.vision_encode_ms,
        encoded=pipeline.feature_cache.misses - before,
        visual_tokens=first.visual_tokens,
    )


def measure(pipelines: dict[str, Pipeline], rounds: int, new_tokens: int) -> list[list[Turns]]:
    """All variants in turns, by round; a round before the first is not counted."""
    found = []
    names = list(pipelines)
    for number in range(rounds + 1):
        turn = number % len(names)
        order = [*names[turn:], *names[:turn]]
        done = {name: ask(name, pipelines[name], number, new_tokens) for name in order}
        if number:
            found.append([done[name] for name in names])
        print(f"round {number} of {rounds}", file=sys.stderr)
    return found


def summary(rounds: Sequence[Sequence[Turns]]) -> list[str]:
    """Lines for people: medians of times, and of ratios paired by round."""
    lines = []
    for place, last in enumerate(rounds[-1]):
        own = [one[place] for one in rounds]
        ratio = statistics.median(one.second_ms / one.first_ms for one in own)
        lines.append(
            f"{last.variant}: {last.visual_tokens} visual tokens; first token of turn 1 after "
            f"{statistics.median(one.first_ms for one in own):.0f} ms, of turn 2 after "
            f"{statistics.median(one.second_ms for one in own):.0f} ms ({ratio:.3f} of it; "
            f"{last.second_prefilled} tokens prefilled, {last.encoded} image encoded in both)"
        )
    names = [one.variant for one in rounds[-1]]
    if UNCOMPRESSED in names:
        ours, theirs = names.index(MAIN_VARIANT), names.index(UNCOMPRESSED)
        ratio = statistics.median(one[ours].first_ms / one[theirs].first_ms for one in rounds)
        lines.append(f"{MAIN_VARIANT} / {UNCOMPRESSED}, first token of turn 1: {ratio:.3f}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Load every variant of a bundle, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", type=Path, help="bundle that laco export wrote")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    try:
        names = [variant.name for variant in open_bundle(options.engine).manifest.variants]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that baselines are for latency only
            pipelines = {
                name: Pipeline(options.engine, options.device, name, options.threads)
                for name in names
            }
        rounds = measure(pipelines, options.rounds, options.new_tokens)
    except LacoError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    for line in summary(rounds):
        print(line)
    if options.json:
        told = [[asdict(one) for one in done] for done in rounds]
        write_atomic(options.json, (json.dumps(told, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
