"""Copies of what the first block of a kind left in a graph, in the places of the others."""

from __future__ import annotations

from collections.abc import Sequence

from onnxscript import ir

from laco_export.blocks import DOMAIN

_GRAPHS = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def put_copies(graph: ir.Graph) -> None:
    """Put copies of the first block of each kind where the others belong, and take marks out.

    Raises:
        ValueError: it cannot be done, and the graph is of no use.
    """
    bodies: dict[int, tuple[ir.Node, list[ir.Node], ir.Node]] = {}
    enter: ir.Node | None = None
    body: list[ir.Node] = []
    marks: list[ir.Node] = []
    for node in tuple(graph):
        if node.domain != DOMAIN:
            body.append(node)
            continue
        marks.append(node)
        number = node.attributes.get_int("number", -1)
        if node.op_type == "Enter":
            enter, body = node, []
        elif node.op_type == "Repeat":
            _pass_on(node, _copy(graph, *bodies[number], node, f".{len(marks)}"))
        elif enter is not None:
            bodies[number] = enter, body, node
            enter, body = None, []
    for node in marks:
        if node.op_type != "Repeat":
            _pass_on(node, node.inputs)
    graph.remove(marks, safe=True)


def _copy(
    graph: ir.Graph,
    enter: ir.Node,
    body: Sequence[ir.Node],
    leave: ir.Node,
    repeat: ir.Node,
    suffix: str,
) -> list[ir.Value | None]:
    """Copy the nodes between two marks to before `repeat`; what they make in place of its outputs.

    What stands neither between the marks nor among the inputs of the first is the same for all.
    """
    given = (*enter.outputs, *enter.inputs[len(enter.outputs) :])  # weights are read as they are
    values: dict[ir.Value | None, ir.Value | None] = dict(zip(given, repeat.inputs, strict=True))
    copies = []
    for node in body:
        if any(one.type in _GRAPHS for one in node.attributes.values()):
            raise ValueError(f"a block has a {node.op_type}")
        outputs = [
            ir.Value(
                name=f"{one.name}{suffix}", type=one.type, shape=one.shape and one.shape.copy()
            )
            for one in node.outputs
        ]
        values.update(zip(node.outputs, outputs, strict=True))
        copies.append(
            ir.Node(
                node.domain,
                node.op_type,
                [values.get(one, one) for one in node.inputs],
                node.attributes.values(),
                overload=node.overload,
                outputs=outputs,
                version=node.version,
                name=f"{node.name}{suffix}",
            )
        )
    graph.insert_before(repeat, copies)
    return [values.get(one, one) for one in leave.inputs]


def _pass_on(node: ir.Node, values: Sequence[ir.Value | None]) -> None:
    """Read `values`, one for each output of `node` and perhaps more, where those were read."""
    for old, new in zip(node.outputs, values, strict=False):
        if new is None:
            raise ValueError(f"{node.name} gives nothing for {old.name}")
        if old.is_graph_output():
            if new.producer() is None or new.is_graph_output():
                raise ValueError(f"{new.name} would be the output {old.name} as well")
            new.name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


__all__ = ["put_copies"]
