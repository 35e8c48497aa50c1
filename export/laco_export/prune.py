"""Take out of a finished folder what its engine will not load."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from laco_runtimes.manifest import EngineFacts, Variant

SOURCES = ("onnx", "baseline")
"""Folders that the exporter itself writes; what targets add elsewhere is theirs."""


def prune_sources(root: Path, facts: EngineFacts, variants: tuple[Variant, ...]) -> None:
    """Remove the fp32 graphs and weights below `SOURCES` that no graph of the bundle uses."""
    needed: set[Path] = set()
    for name in (facts.embed_tokens, facts.decoder, *(one.vision_encoder for one in variants)):
        graph = root / name
        needed |= (
            {graph, *graph.parent.glob(f"{graph.stem}.*")}
            if graph.suffix != ".onnx"
            else {
                graph,
                *_weights(graph),
            }
        )
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path not in needed:
                path.unlink()
        if (root / folder).is_dir() and not any((root / folder).iterdir()):
            (root / folder).rmdir()


def remove_all_but(root: Path, kept: set[Path]) -> None:
    """Undo what was written since `kept` were all files and folders below `root`."""
    for path in sorted(set(root.rglob("*")) - kept, reverse=True):  # what is inside first
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()


def _weights(graph: Path) -> set[Path]:
    """Files that a graph keeps its weights in."""
    model = onnx.load(graph, load_external_data=False)
    return {
        graph.parent / entry.value
        for tensor in _tensors(model)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    found = list(model.graph.initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
    return found


__all__ = ["prune_sources", "remove_all_but"]
