"""Checks for another process to run: light, as it imports this module first."""

from __future__ import annotations

from collections.abc import Iterator

from laco_deploy.doctor.finding import Finding
from laco_runtimes.errors import EngineError


def names(*given: str) -> Iterator[Finding]:
    """One finding for each."""
    for name in given:
        yield Finding(area="package", name=name, state="ok", said=f"{name}.")


def broken_after(name: str) -> Iterator[Finding]:
    yield from names(name)
    raise EngineError("it is broken. Mend it quickly.")


def not_to_be_imported() -> Iterator[Finding]:
    yield from ()
    raise ImportError("libsomething.so.1:\n cannot open shared object file")
