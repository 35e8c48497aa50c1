"""The `laco` command. Verbs import what is heavy when they run: `laco chat` needs no torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

import cyclopts
from rich.console import Console
from rich.logging import RichHandler

from laco_deploy.cli.bench import bench
from laco_deploy.cli.bundle import pack, sign, unpack
from laco_deploy.cli.chat import chat
from laco_deploy.cli.compare import compare
from laco_deploy.cli.data import data
from laco_deploy.cli.doctor import doctor
from laco_deploy.cli.export import export
from laco_deploy.cli.init import init
from laco_deploy.cli.inspect import info, verify
from laco_deploy.cli.report import report
from laco_deploy.cli.train import train
from laco_runtimes.errors import LacoError

EXIT_CODES = "Exit codes: 0 fine, 1 failed, 2 wrong arguments, 3 a check was missed."

VERBS: tuple[Callable[..., None], ...] = (
    *(init, train, compare, export, chat, bench, report),
    *(verify, info, doctor, sign, pack, unpack),
)
"""Verbs in the order in which people need them."""


def build_app() -> cyclopts.App:
    """The command line as an object, for `main` and for tests."""
    app = cyclopts.App(
        name="laco",
        help="Put a small vision-language model with in-encoder token merging on an edge box.",
        help_epilogue=EXIT_CODES,
        version=version("laco-deploy"),
        # Markdown keeps the line breaks of the examples.
        help_format="markdown",
    )
    for verb in VERBS:
        app.command(verb)
    app.command(data)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and leave the process with its exit code."""
    sys.exit(run(arguments))


def export_main() -> None:
    """`laco-export ...` is `laco export ...`."""
    sys.exit(run(["export", *sys.argv[1:]]))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code. Errors end as one message on standard error."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    logging.getLogger("laco").handlers = [
        RichHandler(console=errors, show_path=False, show_time=False, show_level=False)
    ]
    logging.getLogger("laco").setLevel(logging.INFO)
    app = build_app()
    app.error_console = errors
    try:
        app(
            arguments if arguments is not None else sys.argv[1:],
            exit_on_error=False,
            print_error=True,
            result_action="return_value",
        )
    except cyclopts.CycloptsError:
        return 2  # printed by cyclopts
    except LacoError as error:
        errors.print(f"[bold red]error:[/] {_escape(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("stopped")
        return 130
    return 0


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


__all__ = ["build_app", "export_main", "main", "run"]
