"""A worker as its parent sees it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from laco_runtimes.errors import EngineError

QUOTED = 300
"""Characters of a worker's log that an error repeats."""


@dataclass(frozen=True, slots=True)
class Times:
    """Of one request, in seconds."""

    first_s: float
    step_s: float


class Worker:
    """One system in a process of its own, loaded and waiting.

    Args:
        name: for messages.
        command: that runs `serve`.
        log: file for what it prints.
        environment: variables of the process.
        folder: where it runs.
        timeout_s: of loading, and of one request.

    Raises:
        EngineError: it cannot be started, or its model cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        folder: Path,
        timeout_s: float = 900,
    ) -> None:
        self.name, self._log, self._timeout_s = name, log, timeout_s
        try:
            with log.open("wb") as stderr:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=environment,
                    cwd=folder,
                    text=True,
                )
        except OSError as error:
            raise EngineError(f"{name} cannot be started: {error}. Make it anew.") from error
        try:
            self.versions: dict[str, str] = self._reply()["versions"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, prompt: Sequence[int], new_tokens: int) -> Times:
        """Times of one request.

        Raises:
            EngineError: the system failed, ended, or took longer than `timeout_s`.
        """
        assert self._process.stdin is not None  # it is a pipe
        line = json.dumps({"prompt": list(prompt), "new_tokens": new_tokens})
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        reply = self._reply()
        return Times(reply["first_s"], reply["step_s"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what was not read goes with it
                    continue

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # it is a pipe
        guard = threading.Timer(self._timeout_s, self._process.kill)
        guard.start()
        try:
            line = self._process.stdout.readline()
        finally:
            guard.cancel()
        if not line:
            raise self._ended()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(f"{self.name} failed: {reply['error']}. See '{self._log}'.")
        return reply

    def _ended(self) -> EngineError:
        said = self._log.read_text(errors="replace")[-QUOTED:].strip()
        return EngineError(
            f"{self.name} ended, or was ended after {self._timeout_s:.0f} s; it said last: "
            f"{said!r}. See '{self._log}'."
        )


__all__ = ["Times", "Worker"]
