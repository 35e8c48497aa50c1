"""What a written graph consists of: its operators, and where and how an encoder merges tokens.

Read back from the file, so that what is printed is what an engine gets, not what was meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from onnxscript import ir

from laco_export.flavours import FLAVOURS
from laco_export.operators import operators, refuse_unsupported
from laco_export.static_shapes import ENCODER_OPS

_ATTENTION = frozenset({"Attention", "Softmax"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
_CUTS = frozenset({"Slice"})
_SHOWN = ("perm", "axes", "axis", "kernel_shape", "strides", "group", "pads")
"""Attributes that say what a merge does."""


@dataclass(frozen=True, slots=True)
class MergeInGraph:
    """One merge as it stands in the graph."""

    after_block: int
    """How many blocks stand before it."""
    tokens: tuple[int, int]
    """Tokens of a tile before and after, CLS included where it is led past."""
    width: int
    """C."""
    nodes: tuple[str, ...]
    """One line per operator, in order."""

    def lines(self, most: int = 24) -> tuple[str, ...]:
        """Headline, and below it the operators, at `most` so many of them."""
        before, after = self.tokens
        head = f"after block {self.after_block}: {before} -> {after} tokens of width {self.width}"
        nodes = [f"  {node}" for node in self.nodes[:most]]
        if left := len(self.nodes) - len(nodes):
            nodes.append(f"  and {left} more operators")
        return (head, *nodes)


@dataclass(frozen=True, slots=True)
class EncoderAudit:
    """What an encoder graph consists of."""

    operators: dict[str, int]
    """How often each operator stands in it."""
    merges: tuple[MergeInGraph, ...]

    def lines(self) -> tuple[str, ...]:
        """For a screen or a model card, no line longer than a sentence."""
        counts = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        merges = [line for merge in self.merges for line in merge.lines()]
        return (f"operators: {counts}", *(merges or ["no merge inside the encoder"]))


def audit_encoder(path: Path, allowed: frozenset[str] = ENCODER_OPS) -> EncoderAudit:
    """Read an encoder graph and describe it.

    Raises:
        ExportError: it has operators that are not allowed.
    """
    refuse_unsupported(
        path, allowed, "a vision encoder", "Build the model of static reshapes and dense layers"
    )
    graph = ir.load(path).graph
    return EncoderAudit(operators(path), tuple(_merges(graph)))


def audit_decoder(path: Path, flavour: str) -> dict[str, int]:
    """Operators of a decoder graph and how often each stands in it.

    Raises:
        ExportError: it has operators that its flavour does not allow.
    """
    others = ", ".join(name for name in FLAVOURS if name != flavour)
    refuse_unsupported(
        path,
        FLAVOURS[flavour].operators,
        f"a decoder of flavour {flavour}",
        f"Use another flavour ({others}), or a language model of a kind that can be exported",
    )
    return operators(path)


@dataclass(frozen=True, slots=True)
class _Span:
    """Nodes between two places where all that lives on is one tensor of tokens, [tiles, N, C]."""

    nodes: tuple[ir.Node, ...]
    before: int
    after: int

    @property
    def attends(self) -> bool:
        return any(node.op_type in _ATTENTION for node in self.nodes)

    @property
    def merges(self) -> bool:
        """Fewer tokens, and not because some were cut off (CLS)."""
        cut = {node.op_type for node in self.nodes} <= _CUTS
        return self.after < self.before and not cut


def _merges(graph: ir.Graph) -> Iterator[MergeInGraph]:
    """A pre-norm block is two spans, attention and MLP; a merge is what stands between blocks."""
    width, spans = _spans(graph)
    blocks, index = 0, 0
    while index < len(spans):
        if spans[index].attends and not spans[index].merges:
            blocks, index = blocks + 1, index + 2
            continue
        end = index  # of what stands between this block and the next
        while end < len(spans) and (spans[end].merges or not spans[end].attends):
            end += 1
        yield from _split(spans[index:end], width, blocks, last=end == len(spans))
        index = end


def _split(between: Sequence[_Span], width: int, blocks: int, last: bool) -> Iterator[MergeInGraph]:
    """One merge for every time that tokens become fewer; what does not merge belongs to it."""
    places = [i for i, span in enumerate(between) if span.merges]
    starts = [_start(between, place) if order else 0 for order, place in enumerate(places)]
    # Behind the last block come the projector and perhaps the end of CLS.
    ends = [*starts[1:], places[-1] + 1 if last else len(between)] if places else []
    for place, first, end in zip(places, starts, ends, strict=True):
        start = first
        while start < place and {node.op_type for node in between[start].nodes} <= _NORMS | _CUTS:
            start += 1  # the encoder's last norm, and the end of CLS
        yield MergeInGraph(
            after_block=blocks,
            tokens=(between[start].before, between[place].after),
            width=width,
            nodes=tuple(_describe(node) for span in between[start:end] for node in span.nodes),
        )


def _start(between: Sequence[_Span], place: int) -> int:
    """Where a merge starts that tokens may have been added for, to make its windows full."""
    while place and between[place - 1].after > between[place - 1].before:
        place -= 1
    return place


def _spans(graph: ir.Graph) -> tuple[int, list[_Span]]:
    """Width C of the encoder's tokens, and its graph cut wherever they are all that lives on."""
    nodes = list(graph)
    last_use = {
        value: max((i for i, node in enumerate(nodes) if value in node.inputs), default=-1)
        for value in graph.inputs
    }
    for i, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and (value.producer() is not None or value in last_use):
                last_use[value] = i
    last_use |= dict.fromkeys(graph.outputs, len(nodes))

    alive: set[ir.Value] = set(graph.inputs)
    cuts: list[tuple[int, int, int]] = []  # node, tokens, width
    for i, node in enumerate(nodes):
        alive |= {value for value in node.outputs if last_use.get(value, -1) > i}
        alive = {value for value in alive if last_use[value] > i}
        sizes = _sizes(node.outputs[0])
        if alive == {node.outputs[0]} and len(sizes) == 3:
            cuts.append((i, *sizes[1:]))  # type: ignore[arg-type]  # checked below
    widths = Counter(width for _, _, width in cuts)
    if not widths:
        return 0, []
    width = widths.most_common(1)[0][0]
    stream = [cut for cut in cuts if cut[2] == width]
    return width, [
        _Span(tuple(nodes[one[0] + 1 : other[0] + 1]), one[1], other[1])
        for one, other in pairwise(stream)
    ]


def _sizes(value: ir.Value) -> tuple[int | str, ...]:
    if value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)


def _describe(node: ir.Node) -> str:
    """`MatMul [tiles, 16, 256] x [256, 64] -> [tiles, 16, 64]`."""
    operands = [
        _show(value)
        for value in node.inputs
        if value is not None and (value.const_value is None or node.op_type in ("MatMul", "Conv"))
    ]
    details = [
        f"{name} {list(node.attributes[name].value)}"
        if isinstance(node.attributes[name].value, (list, tuple))
        else f"{name} {node.attributes[name].value}"
        for name in _SHOWN
        if name in node.attributes
    ]
    if node.op_type == "ReduceMean" and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = node.inputs[1].const_value
        details += [f"axes {axes.numpy().tolist()}"] if axes is not None else []
    text = f"{node.op_type} {' x '.join(operands)} -> {_show(node.outputs[0])}"
    return f"{text} ({', '.join(details)})" if details else text


def _show(value: ir.Value) -> str:
    return f"[{', '.join(map(str, _sizes(value)))}]"


__all__ = [
    "EncoderAudit",
    "MergeInGraph",
    "audit_decoder",
    "audit_encoder",
]
