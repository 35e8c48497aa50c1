"""`laco bench`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from laco_deploy.terminal import say
from laco_runtimes.errors import ArgumentError, LacoError

if TYPE_CHECKING:
    from laco_deploy.benchmark.run import Progress

STDOUT = Path("-")


class OutputFileError(LacoError, OSError):
    """A measurement is done and its file cannot be written."""


def bench(
    engine: Path,
    /,
    *,
    image: Path | None = None,
    prompt: str = "Describe the image.",
    new_tokens: int = 64,
    runs: int = 10,
    warmup: int = 2,
    device: str = "auto",
    threads: int | None = None,
    memory: bool = True,
    json: Annotated[Path | None, Parameter(negative_none="no-", allow_leading_hyphen=True)] = Path(
        "bench.json"
    ),
    html: Annotated[Path | None, Parameter(negative_none="no-")] = Path("report.html"),
) -> None:
    """Measure how much faster than the uncompressed model a bundle is, on this very machine.

    Examples:

    * `laco bench engine/`
    * `laco bench engine/ --image photo.jpg --new-tokens 32 --runs 20`
    * `laco bench engine/ --no-html --json - | jq .results[0].ttft_ms.median`

    All variants of the bundle run in one process, in turns. Baselines come into a bundle with
    `laco export --baseline uncompressed,external`.

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote.
    image
        Image file; left out, a synthetic picture of 640x480 pixels. Only preprocessing takes longer
        for a larger one.
    prompt
        Text that goes with the image.
    new_tokens
        Length of every answer in tokens; a model that would stop earlier goes on.
    runs
        Rounds of one request per variant.
    warmup
        Requests per variant before the first round, not counted.
    device
        `auto`, or a device in the engine's own words. An explicit device never falls back.
    threads
        CPU threads per inference; left out, the engine chooses.
    memory
        Find each variant's peak memory too, in a process of its own.
    json
        File for all numbers; `-` prints them as one line on standard output, and the table on
        standard error.
    html
        File for a page with charts (needs the extra `report`).
    """
    from laco_deploy.benchmark.page import render_page, require_plotly
    from laco_deploy.benchmark.run import BenchJob, run_benchmark
    from laco_deploy.benchmark.table import headline, notes, to_rich

    job = BenchJob(
        engine=engine,
        image=image,
        prompt=prompt,
        new_tokens=new_tokens,
        runs=runs,
        warmup=warmup,
        device=device,
        threads=threads,
        memory=memory,
    )
    json_file = None if json == STDOUT else json
    _check_outputs(engine, json_file, html)
    if html is not None:
        require_plotly()

    with _progress() as progress:
        report = run_benchmark(job, progress=progress)

    to_stderr = json == STDOUT
    Console(stderr=to_stderr, highlight=False).print(to_rich(report))
    for note in notes(report):
        say(note, style="dim", to_stderr=to_stderr)
    say(headline(report), style="bold", to_stderr=to_stderr)
    if json_file is not None:
        _write(json_file, report.model_dump_json(indent=2) + "\n")
        say(f"numbers: {json_file}", to_stderr=to_stderr)
    if html is not None:
        _write(html, render_page(report))
        say(f"page: {html}", to_stderr=to_stderr)
    if json == STDOUT:
        print(report.model_dump_json())


def _check_outputs(engine: Path, *outputs: Path | None) -> None:
    """Refuse what could not be written after the measurement, or would spoil what is there.

    Raises:
        ArgumentError: one file twice, a folder, no folder to write in, or a file in the bundle,
            which may hold nothing that its manifest does not list.
    """
    wanted = [path.resolve() for path in outputs if path is not None]
    for path in wanted:
        if wanted.count(path) > 1:
            raise ArgumentError(f"'{path}' is to be both --json and --html. Name two files.")
        if path.is_dir() or not path.parent.is_dir():
            raise ArgumentError(f"'{path}' cannot be written. Name a file in a folder that exists.")
        if path.is_relative_to(engine.resolve()):
            raise ArgumentError(
                f"'{path}' is inside the bundle, which would not be whole any more. "
                "Name a file elsewhere."
            )


def _write(path: Path, text: str) -> None:
    from laco_runtimes.bundle import write_atomic

    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise OutputFileError(
            f"'{path}' cannot be written: {error.strerror}. Make room or name another file."
        ) from error


@contextmanager
def _progress() -> Iterator[Progress]:
    """One bar per stage with the time left, on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield show


__all__ = ["bench"]
