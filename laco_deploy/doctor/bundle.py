"""A bundle or a checkpoint on this machine: whole, small enough, and does it answer? Run apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from laco_deploy.doctor.finding import Finding, finding_of
from laco_runtimes.errors import LacoError
from laco_runtimes.manifest import MANIFEST_NAME
from laco_runtimes.memory import available_bytes, readable

QUESTION = "What is in the picture?"
SIDE = 64
"""Of the picture that is asked about, in pixels; what it shows does not matter."""
NEW_TOKENS = 4


def check_folder(path: str, device: str) -> Iterator[Finding]:
    """Everything between a folder and its answer, up to the first failure.

    Args:
        path: bundle or checkpoint.
        device: as `Pipeline` takes it.
    """
    root = Path(path)
    try:
        if (root / MANIFEST_NAME).exists():
            yield _check_files(root)
        if root.is_dir():
            yield _check_memory(root)
        yield from _ask(root, device)
    except LacoError as error:
        yield finding_of("bundle", path, error)


def _check_files(root: Path) -> Finding:
    from laco_runtimes.bundle import open_bundle

    bundle = open_bundle(root)
    manifest = bundle.manifest
    precision = ", ".join(f"{name} {value}" for name, value in manifest.precision.items())
    size = readable(sum(entry.size for entry in manifest.files))
    signed = {"valid": "signed", "not checked": "signature not checked", "none": "not signed"}
    said = f"{manifest.target}, {precision}; {size}, every file as exported, "
    return _found("files", f"{said}{signed[bundle.signature]}.")


def _check_memory(root: Path) -> Finding:
    """Files against free memory. What is loaded is held once at least, so this is a lower bound."""
    size = sum(one.stat().st_size for one in root.rglob("*") if one.is_file())
    free = available_bytes()
    said = f"{readable(size)} of files"
    if free is None:
        return _found("memory", f"{said}; the system does not say what is free.")
    said += f", {readable(free)} of memory free."
    if free < size:
        return Finding(
            area="bundle",
            name="memory",
            state="note",
            said=said,
            remedy="End other programs, or export with --precision int8 or int4.",
        )
    return _found("memory", said)


def _ask(root: Path, device: str) -> Iterator[Finding]:
    from laco_runtimes.pipeline import Pipeline

    pipeline = Pipeline(root, device=device)
    info = pipeline.info
    yield _found("engine", f"{info.engine} on {info.device}: {info.reason}.")
    picture = np.full((SIDE, SIDE, 3), 127, np.uint8)
    reply = pipeline.chat(picture, QUESTION, max_new_tokens=NEW_TOKENS)
    yield _found(
        "answer",
        f"{reply.visual_tokens} visual tokens, first token after {reply.timings.ttft_ms:.0f} ms, "
        f"{reply.new_tokens} new tokens.",
    )


def _found(name: str, said: str) -> Finding:
    return Finding(area="bundle", name=name, state="ok", said=said)


__all__ = ["check_folder"]
