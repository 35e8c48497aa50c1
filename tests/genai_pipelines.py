"""Pipelines of openvino_genai, which must not go before the test process does.

Each has OpenVINO Cores of its own, and of several that go, one leaves the thread with a stack for
signals that is gone (see `openvino_core`). The next signal that has a handler ended a worker of
these tests: the end of a process that loads data, in another file.
"""

from __future__ import annotations

from typing import Any

_KEPT: list[Any] = []


def kept(holder: Any) -> Any:
    """A pipeline, or what holds one; it stays until the process ends."""
    _KEPT.append(holder)
    return holder


__all__ = ["kept"]
