"""Write the published schema of `bench.json`: `python -m laco_deploy.benchmark.schema_file`."""

from __future__ import annotations

import json
from pathlib import Path

from laco_deploy.benchmark.schema import SCHEMA_ID, json_schema
from laco_runtimes.bundle import write_atomic


def main() -> None:
    """Replace the file beside this one."""
    text = json.dumps(json_schema(), indent=2) + "\n"
    write_atomic(Path(__file__).with_name(SCHEMA_ID), text.encode())


if __name__ == "__main__":
    main()
