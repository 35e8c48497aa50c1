"""Make what is missing: environments, weights, every system's own files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from laco_runtimes.bundle import write_atomic
from laco_runtimes.errors import ExportError
from samples.peers.ours import write_engine, write_weights
from samples.peers.systems import ENVIRONMENTS, OURS, System

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[[Sequence[str], Mapping[str, str], Path], None]
"""Run a command, with these variables set besides, and append what it says to a log."""


def run_here(command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
    """From the root of the repository.

    Raises:
        ExportError: it cannot be started, or failed.
    """
    environment = {**os.environ, **variables}
    try:
        with log.open("ab") as said:
            subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=said, stderr=said)
    except OSError as error:
        raise ExportError(f"{command[0]!r} cannot be started: {error}. Make it anew.") from error
    except subprocess.CalledProcessError as error:
        raise ExportError(
            f"{Path(command[0]).name} ended with {error.returncode}. See what it said in '{log}'."
        ) from error


def variables_of(home: str) -> dict[str, str]:
    """Of a process in a peer's environment: it sees `samples`, no hub, and ours only if it is ours.

    Ours keeps the path of the interpreter that runs now.
    """
    path = [str(ROOT)] if home != OURS else [str(ROOT), *(one for one in sys.path if one)]
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def program(work: Path, home: str, name: str) -> str:
    """Path of a program of an environment."""
    if home == OURS:
        return sys.executable
    return str(work / "environments" / home / ("Scripts" if os.name == "nt" else "bin") / name)


def make_environment(work: Path, home: str, run: Run = run_here) -> None:
    """A virtual environment of a peer, from the package index that pip is set to.

    A stamp is written last; without it, the environment is made anew.

    Raises:
        ExportError: something cannot be installed.
    """
    folder = work / "environments" / home
    stamp = folder / "installed.txt"
    wanted = "\n".join(" ".join(one) for one in ENVIRONMENTS[home].installs) + "\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"making the environment of {home}", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    for packages in ENVIRONMENTS[home].installs:
        pip = (program(work, home, "python"), "-m", "pip", "install", "--quiet", *packages)
        run(pip, {}, work / f"{home}-install.log")
    write_atomic(stamp, wanted.encode())


def make_weights(settings: Mapping[str, Any], tokenizer: Path, work: Path) -> None:
    """The weights that all systems share."""
    if (work / "weights").exists():
        return
    print("making random weights and our graphs of them", file=sys.stderr)
    for name in ("weights.part", "graphs"):
        shutil.rmtree(work / name, ignore_errors=True)
    write_weights(settings, tokenizer, work)


def make_model(
    system: System, settings: Mapping[str, Any], work: Path, run: Run = run_here
) -> None:
    """The files of one system; what a killed run left half is made anew.

    Raises:
        ExportError: it cannot be made.
    """
    out = work / system.model
    if system.home == OURS:
        if not (out / "facts.json").exists():
            print(f"making {out}", file=sys.stderr)
            write_engine(settings, work, system.backend, system.weights)
        return
    if out.exists():
        return
    print(f"making {out}", file=sys.stderr)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    places = {"out": str(part), "weights": str(work / "weights"), "work": str(work)}
    first, *rest = (word.format(**places) for word in system.make)
    command = (program(work, system.home, first), *rest)
    run(command, variables_of(system.home), work / f"{system.model}-make.log")
    part.rename(out)


__all__ = ["ROOT", "make_environment", "make_model", "make_weights", "program", "variables_of"]
