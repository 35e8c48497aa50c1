"""`optimum-cli export laco ...` is `laco export ...`.

optimum looks for files of this folder in every installed package and registers what their
`REGISTER_COMMANDS` lists. Without optimum nothing imports this file.
"""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class LacoExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Hands every argument over, so that there is one list of options."""

    COMMAND = CommandInfo(
        name="laco", help="Export a LaCo checkpoint as a sealed bundle for an edge device."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Take all that follows, options and `--help` included, as it stands."""
        parser.prefix_chars = ""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(self) -> None:
        """Run `laco export` and leave with its exit code."""
        from laco_deploy.cli import run

        sys.exit(run(["export", *self.args.arguments]))


REGISTER_COMMANDS = [(LacoExportCommand, ExportCommand)]
