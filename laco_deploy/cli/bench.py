"""`laco bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from laco_deploy.terminal import say, show, stage_bars
from laco_runtimes.errors import ArgumentError, LacoError

STDOUT = Path("-")
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]


class OutputFileError(LacoError, OSError):
    """A measurement is done and its file cannot be written."""


def bench(
    engine: Path | None = None,
    /,
    *,
    ckpt: Path | None = None,
    target: str | None = None,
    sweep: Names = (),
    cache: Path | None = None,
    repeat: Path | None = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
    image: Path | None = None,
    prompt: str | None = None,
    new_tokens: str | None = None,
    runs: int | None = None,
    warmup: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    memory: bool | None = None,
    energy: bool | None = None,
    limits: bool | None = None,
    accuracy: Path | None = None,
    json: Annotated[Path | None, Parameter(negative_none="no-", allow_leading_hyphen=True)] = Path(
        "bench.json"
    ),
    html: Annotated[Path | None, Parameter(negative_none="no-")] = Path("report.html"),
) -> None:
    """Measure how much faster than the uncompressed model a bundle is, on this very machine.

    Examples:

    * `laco bench engine/`
    * `laco bench engine/ --quick`
    * `laco bench engine/ --image photo.jpg --new-tokens 6,32 --runs 20`
    * `laco bench engine/ --no-html --json - | jq .results[0].ttft_ms.median`
    * `laco bench --ckpt ckpt/ --target openvino --sweep after_block=2,4,6`
    * `laco bench --repeat bench.json`

    All variants of the bundle run in one process, in turns. Baselines come into a bundle with
    `laco export --baseline uncompressed,external`.

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote.
    ckpt
        Checkpoint folder in place of a bundle; what is missing is exported into a cache.
    target
        Engine that the checkpoint is exported for.
    sweep
        Values of an option of the export, `after_block=1,2,4` or `precision=fp32,int8`; may be
        given several times, for all combinations.
    cache
        Folder for exported bundles; left out, one in the user's cache.
    repeat
        A `bench.json`: measure the same again. Options given beside it replace its own.
    quick
        An answer in less than 20 seconds: fewer rounds, shorter answers, times alone. Variants and
        rounds for which there is no time are left out; loading and a first request always happen.
    image
        Image file; left out, a synthetic picture of 640x480 pixels. Only preprocessing takes longer
        for a larger one.
    prompt
        Text that goes with the image; left out, "Describe the image."
    new_tokens
        Lengths of answers in tokens; left out, 6,64,256 as far as the context has room. All are
        read off the longest one; a model that would stop earlier goes on.
    runs
        Rounds of one request per variant; left out, 10.
    warmup
        Requests per variant before the first round, not counted; left out, 2.
    device
        A device in the engine's own words, which never falls back; left out, the engine's best.
    threads
        CPU threads per inference; left out, the engine chooses.
    memory
        Start each variant in a process of its own too: peak memory, load, cold start.
    energy
        Find the energy of a request, where the machine has a meter.
    limits
        Measure the machine's matrix rate and memory bandwidth too.
    accuracy
        JSON file of accuracies by variant, `{"laco": 61.2}`, for a plot in the page.
    json
        File for all numbers; `-` prints them as one line on standard output, and the table on
        standard error.
    html
        File for a page with charts (needs the extra `report`).
    """
    from laco_deploy.benchmark.accuracy import read_accuracies
    from laco_deploy.benchmark.page import render_page, require_plotly
    from laco_deploy.benchmark.remarks import notes
    from laco_deploy.benchmark.table import headline, to_rich
    from laco_deploy.cli.bench_job import Measurement, Options

    measurement = Measurement(
        Options(
            engine=engine,
            ckpt=ckpt,
            target=target,
            sweep=sweep,
            cache=cache,
            repeat=repeat,
            quick=quick,
            image=image,
            prompt=prompt,
            new_tokens=new_tokens,
            runs=runs,
            warmup=warmup,
            device=device,
            threads=threads,
            memory=memory,
            energy=energy,
            limits=limits,
        )
    )
    json_file = None if json == STDOUT else json
    _check_outputs(measurement.engine, json_file, html)
    accuracies = {} if accuracy is None else read_accuracies(accuracy)
    if html is not None:
        require_plotly()
    elif accuracies:
        raise ArgumentError("--accuracy is for the page. Leave --no-html out.")

    with stage_bars() as progress:
        report = measurement.run(progress)

    to_stderr = json == STDOUT
    show(to_rich(report), to_stderr=to_stderr)
    for note in (*measurement.remarks, *notes(report)):
        say(note, style="dim", to_stderr=to_stderr)
    say(headline(report), style="bold", to_stderr=to_stderr)
    if json_file is not None:
        write_file(json_file, report.model_dump_json(indent=2) + "\n")
        say(f"numbers: {json_file}", to_stderr=to_stderr)
    if html is not None:
        write_file(html, render_page(report, accuracies))
        say(f"page: {html}", to_stderr=to_stderr)
    if json == STDOUT:
        print(report.model_dump_json())


def _check_outputs(engine: Path | None, *outputs: Path | None) -> None:
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
        if engine is not None and path.is_relative_to(engine.resolve()):
            raise ArgumentError(
                f"'{path}' is inside the bundle, which would not be whole any more. "
                "Name a file elsewhere."
            )


def write_file(path: Path, text: str) -> None:
    """Write it whole or not at all.

    Raises:
        OutputFileError: there is no room, or no permission.
    """
    from laco_runtimes.bundle import write_atomic

    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise OutputFileError(
            f"'{path}' cannot be written: {error.strerror}. Make room or name another file."
        ) from error


__all__ = ["OutputFileError", "bench", "write_file"]
