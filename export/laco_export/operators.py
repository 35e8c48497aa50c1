"""Which operators a written graph consists of, and a refusal of those that may not be there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from onnxscript import ir

from laco_runtimes.errors import ExportError


@dataclass(frozen=True, slots=True)
class UnsupportedNode:
    """A node that may not be there."""

    name: str
    operator: str
    """Name in ai.onnx, `domain::name` elsewhere."""


def operators(path: Path) -> dict[str, int]:
    """How often each operator stands in a graph, most frequent first."""
    counts = Counter(operator_name(node) for node in ir.load(path).graph.all_nodes())
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def unsupported(path: Path, allowed: frozenset[str]) -> tuple[UnsupportedNode, ...]:
    """Nodes, those of inner graphs too, whose operators are not among the allowed ones."""
    return tuple(
        UnsupportedNode(_place(node), operator_name(node))
        for node in ir.load(path).graph.all_nodes()
        if operator_name(node) not in allowed
    )


def refuse_unsupported(path: Path, allowed: frozenset[str], target: str, way_out: str) -> None:
    """Refuse a graph with operators that are not allowed.

    Args:
        path: of the `.onnx` file.
        allowed: names in ai.onnx, `domain::name` elsewhere.
        target: who does not take them.
        way_out: what the user can do instead, a sentence without its full stop.

    Raises:
        ExportError: names the operators, the first node of them and the way out.
    """
    if nodes := unsupported(path, allowed):
        kinds = ", ".join(dict.fromkeys(node.operator for node in nodes))
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        raise ExportError(
            f"{path.name} has operators that {target} does not take: {kinds} "
            f"(node {nodes[0].name!r}{more}). {way_out}."
        )


def operator_name(node: ir.Node) -> str:
    """Name in ai.onnx, `domain::name` elsewhere."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _place(node: ir.Node) -> str:
    return node.name or next((str(value.name) for value in node.outputs if value.name), "")


__all__ = ["UnsupportedNode", "operator_name", "operators", "refuse_unsupported", "unsupported"]
