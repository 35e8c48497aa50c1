"""Hold our language model against other runtimes on the same weights.

python -m samples.peers --work peers/

Qwen2.5-0.5B's shape with random weights in openvino_genai (through optimum-intel's export),
onnxruntime-genai (through its model builder), llama.cpp (llama-cpp-python, built from source) and
our two CPU engines. Each peer has a virtual environment of its own below `--work`, made here with
pip; what is there already is used again. Every system lives in a process of its own and they take
turns, so that a machine that warms up or is disturbed slows all alike. A peer that cannot be
installed, exported or run is left out, and the table says why.

The prompts are as long as an image in 256 or in 1,024 visual tokens and 32 of text. Encoders are
not compared: none of the peers runs one that merges tokens inside.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laco_runtimes.bundle import write_atomic
from laco_runtimes.errors import ArgumentError, LacoError
from samples.paper_tables.cells import text_config
from samples.peers import prepare
from samples.peers.client import Worker
from samples.peers.systems import OURS, PEERS, System, chosen
from samples.peers.turns import figures, measure, report, rows

SETTINGS_FILE = "weights.json"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.peers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--tokenizer", type=Path, default=prepare.ROOT / "samples" / "laco-tiny")
    parser.add_argument("--prompt-tokens", type=_count(1), nargs="+", default=[288, 1056])
    parser.add_argument("--new-tokens", type=_count(2), default=24)
    parser.add_argument("--rounds", type=_count(1), default=7)
    parser.add_argument("--threads", type=_count(1), help="by default each system's own choice")
    parser.add_argument(
        "--tiny", action="store_true", help="two narrow layers: to see that it runs"
    )
    return parser.parse_args(arguments)


def worker_of(system: System, options: argparse.Namespace) -> Worker:
    """Start a system.

    Raises:
        EngineError: it cannot be loaded.
    """
    work = options.work.resolve()
    settings = {
        "model": str(work / system.model / system.file),
        "threads": options.threads,
        "context": max(options.prompt_tokens) + options.new_tokens,
        "backend": system.backend,
    }
    python = prepare.program(work, system.home, "python")
    return Worker(
        system.name,
        (python, "-m", system.worker, json.dumps(settings)),
        log=work / f"{system.name.replace(' ', '-')}.log",
        environment={**os.environ, **prepare.variables_of(system.home)},
        folder=prepare.ROOT,
    )


def prepared(
    systems: Sequence[System], settings: dict[str, Any], work: Path, failed: dict[str, str]
) -> list[System]:
    """Those whose environment and files could be made; the others go to `failed`."""
    ready = []
    for system in systems:
        try:
            if system.home != OURS:
                prepare.make_environment(work, system.home)
            prepare.make_model(system, settings, work)
        except LacoError as error:
            failed[system.name] = str(error)
        else:
            ready.append(system)
    return ready


def check_shape(settings: dict[str, Any], work: Path) -> None:
    """Refuse a folder made for another shape.

    Raises:
        ArgumentError: it was.
    """
    path = work / SETTINGS_FILE
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        write_atomic(path, text.encode())
    elif path.read_text() != text:
        raise ArgumentError(
            f"'{work}' holds models of another shape. Name another folder with --work."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare what is missing, measure, print and write; exit code 1 if a system is missing."""
    options = parse(arguments)
    work = options.work.resolve()
    settings = text_config(options.tiny)
    failed: dict[str, str] = {}
    versions: dict[str, dict[str, str]] = {}
    systems = chosen(tuple(options.peers))
    try:
        work.mkdir(parents=True, exist_ok=True)
        check_shape(settings, work)
        prepare.make_weights(settings, options.tokenizer, work)
        ready = prepared(systems, settings, work, failed)
        with contextlib.ExitStack() as stack:
            workers = {}
            for system in ready:
                try:
                    worker = stack.enter_context(worker_of(system, options))
                except LacoError as error:
                    failed[system.name] = str(error)
                    continue
                workers[system.name] = worker
                versions.setdefault(system.home, {}).update(worker.versions)
            samples = measure(
                workers,
                lengths=options.prompt_tokens,
                new_tokens=options.new_tokens,
                rounds=options.rounds,
                vocabulary=settings["vocab_size"],
                failed=failed,
            )
    except LacoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "shape": "tiny" if options.tiny else "qwen2.5-0.5b",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads or "each system's own choice",
        "new tokens": options.new_tokens,
        "rounds": options.rounds,
        "python": platform.python_version(),
    }
    table = rows(systems, samples)
    text = report(facts, table, versions, failed)
    print(text, end="")
    values = figures(facts, table, versions, failed, samples)
    write_atomic(work / "peers.json", (json.dumps(values, indent=2) + "\n").encode())
    write_atomic(work / "peers.md", text.encode())
    return 1 if failed else 0


def _count(least: int) -> Any:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return read


if __name__ == "__main__":
    sys.exit(main())
