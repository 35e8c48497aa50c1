"""Measure VT and TPS of the paper's Tables 1, 4 and 8, as ratios to LaCo@1.

python -m samples.paper_tables --work tables/

AIMv2, SigLIP and InternViT at full size with random weights, one tile per image, in PyTorch as in
the paper; LaCo after 1/12, 1/6, 1/4, 1/2 and all of the blocks, and the compared mergers after 1/4.
Cells of an encoder take turns, so that a machine that warms up or is disturbed slows all alike.
Every request is on the disk when it is done: stopped by hand or by `--minutes`, the same command
goes on. `--tiny` shrinks width, depth and image, to see in seconds that all of it runs.

Answers have 6 tokens because the paper's have (1 / TPS against VT has a slope of 0.173).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from laco_runtimes.bundle import write_atomic
from laco_runtimes.errors import LacoError
from samples.paper_tables import paper
from samples.paper_tables.cells import ENCODERS, Cell, cells_of, text_config
from samples.paper_tables.findings import laws, rows
from samples.paper_tables.measure import measure
from samples.paper_tables.record import Record
from samples.paper_tables.system import DTYPES, LanguageModel, System, TorchSystem
from samples.paper_tables.tables import report


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m samples.paper_tables", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is measured")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--rounds", type=_count, default=7)
    parser.add_argument("--minutes", type=float, default=90, help="begin nothing after them")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument(
        "--attention", choices=("sdpa", "eager"), default="sdpa", help="of the encoders"
    )
    parser.add_argument("--new-tokens", type=_count, default=6)
    parser.add_argument("--text-tokens", type=_count, default=32, help="beside the visual ones")
    parser.add_argument("--threads", type=_count, help="by default torch's own choice")
    parser.add_argument("--tiny", action="store_true", help="12 narrow blocks, few patches")
    return parser.parse_args(arguments)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What must be alike for samples to be of one table."""
    return {
        "size": "tiny" if options.tiny else "full",
        "dtype": options.dtype,
        "attention": options.attention,
        "new_tokens": options.new_tokens,
        "text_tokens": options.text_tokens,
        "threads": options.threads or torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then print and write the report; exit code 1 if it is not whole."""
    options = parse(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    settings = settings_of(options)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    found, found_laws, unfinished = [], [], []
    language: list[LanguageModel] = []  # one for all encoders, made when the first needs it
    try:
        record = Record(options.work, settings)
        for encoder in options.encoders:
            cells = cells_of(encoder, options.tiny)
            reference = next(cell for cell in cells if cell.variant == paper.REFERENCE)

            def make(cells: Sequence[Cell] = cells) -> System:
                dtype = DTYPES[options.dtype]
                if not language:
                    text = text_config(options.tiny)
                    language.append(
                        LanguageModel(text, dtype, options.text_tokens, options.new_tokens)
                    )
                return TorchSystem(cells, language[0], dtype, options.attention)

            whole = measure(
                record, cells, reference, make, rounds=options.rounds, deadline=deadline
            )
            if not whole:
                unfinished.append(encoder)
            measured = rows(cells, reference, {cell.name: record.samples(cell) for cell in cells})
            found += measured
            if (law := laws(measured)) is not None:
                found_laws.append(law)
    except LacoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    title = ", ".join(f"{name} {value}" for name, value in settings.items())
    text = report(title, found, found_laws, unfinished, tiny=options.tiny)
    print(text, end="")
    figures = {
        "settings": settings,
        "rows": [asdict(row) for row in found],
        "laws": [asdict(law) for law in found_laws],
        "unfinished": unfinished,
    }
    write_atomic(options.work / "tables.json", (json.dumps(figures, indent=2) + "\n").encode())
    write_atomic(options.work / "tables.md", text.encode())
    return 1 if unfinished else 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
