"""Blocks that repeat are traced once: every further one is a copy of what the first left.

Tracing is slow Python and takes as long for the last of 24 equal blocks as for the first. While a
module is traced, the first block of each kind runs between two marks, `Enter` and `Leave`, and any
other leaves a single node, `Repeat`, which takes what the block is given and its weights. In the
graph `laco_export.block_copies` then puts the nodes between the marks in place of every `Repeat`,
with the values and weights that it names. The tracer names weights, and they are not copied.

Blocks are of a kind if nothing that their graph can hang on differs: classes and attributes of all
their modules, names, shapes and types of weights. Whatever is not known to be equal is traced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from laco_runtimes.graphs import GraphSpec

DOMAIN = "laco"
"""Of the nodes that stand in a graph only until `block_copies`."""

REPEATS = 3
"""With fewer equal blocks in a list nothing is gained."""

_PARTS = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes of every module that are compared by what is in them."""


@dataclass
class _First:
    """A block of its kind that is traced."""

    number: int
    form: pytree.TreeSpec | None = None
    """How its outputs are nested; None if they are not understood."""
    outputs: list[Tensor] = field(default_factory=list)


@contextmanager
def repeats_left_out(module: nn.Module, spec: GraphSpec) -> Iterator[None]:
    """Trace a module in here: blocks like an earlier one leave one node each."""
    blocks, calls = _repeated(module), _Calls(spec)
    if not blocks:
        yield
        return
    hook = module.register_forward_pre_hook(calls.start)
    try:
        for block, kind in blocks.items():
            vars(block)["forward"] = partial(calls.call, block, kind, block.forward)
        yield
    finally:
        hook.remove()
        for block in blocks:
            vars(block).pop("forward", None)


def _repeated(module: nn.Module) -> dict[nn.Module, Hashable]:
    """Members of lists that at least some others in the list are like, and of which kind."""
    found: dict[nn.Module, Hashable] = {}
    for members in module.modules():
        if isinstance(members, nn.ModuleList):
            own = [block for block in members if "forward" not in vars(block)]
            kinds = {block: _kind(block) for block in own}
            counts = Counter(kinds.values())
            found |= {block: kind for block, kind in kinds.items() if counts[kind] >= REPEATS}
    return found


def _kind(block: nn.Module) -> Hashable:
    """Equal for two blocks only if they make the same graph of the same inputs."""
    first: dict[int, str] = {}  # a weight may be there under several names
    weights = tuple(
        (name, first.setdefault(id(one), name), type(one), one.dtype, one.shape, one.device)
        for name, one in _weights(block)
    )
    modules = tuple(
        (name, type(one), _frozen({k: v for k, v in vars(one).items() if k not in _PARTS}))
        for name, one in block.named_modules(remove_duplicate=False)
    )
    return weights, modules


def _weights(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from block.named_parameters(remove_duplicate=False)
    yield from block.named_buffers(remove_duplicate=False)


def _frozen(value: object) -> Hashable:
    """Simple values and containers by what they hold, all else by which object it is."""
    match value:
        case None | bool() | int() | float() | str() | torch.dtype():
            return type(value), value
        case list() | tuple():
            return type(value), *map(_frozen, value)
        case set() | frozenset():
            return type(value), frozenset(map(_frozen, value))
        case dict():
            return dict, *((_frozen(key), _frozen(one)) for key, one in value.items())
        case partial():
            return partial, *map(_frozen, (value.func, value.args, value.keywords))
    return id(value)


class _Calls:
    """What is done in place of `forward` of blocks that repeat."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self.firsts: dict[Hashable, _First] = {}
        self.inside = False

    def start(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Before the module runs, which it does several times for one graph.

        torch gives every dimension of every input a size of its own, whatever its name. Comparing
        those of one name makes them one, without which no layer would be like another.
        """
        self.firsts.clear()
        sizes: dict[str, int] = {}
        for one, tensor in zip(self.spec.inputs, inputs, strict=True):
            for dim, size in zip(one.dims, tensor.shape, strict=True):
                if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                    raise ValueError(f"{one.name} has {size} {dim}, others have {sizes[dim]}")

    def call(
        self,
        block: nn.Module,
        kind: Hashable,
        forward: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """What the block gives; `forward` is its own."""
        given, form = pytree.tree_flatten((args, kwargs))
        if self.inside or not all(map(_understood, given)):
            return forward(*args, **kwargs)
        tensors = [one for one in given if isinstance(one, Tensor)]
        inputs = [*tensors, *(one for _, one in _weights(block))]
        key = kind, str(form), tuple(map(_described, given))
        if first := self.firsts.get(key):
            if first.form is None:
                return forward(*args, **kwargs)
            made = _mark("Repeat", first.number, inputs, first.outputs)
            return pytree.tree_unflatten(made, first.form)
        first = self.firsts[key] = _First(len(self.firsts))
        entered = iter(_mark("Enter", first.number, inputs, tensors))
        args, kwargs = pytree.tree_unflatten(
            [next(entered) if isinstance(one, Tensor) else one for one in given], form
        )
        self.inside = True
        try:
            result = forward(*args, **kwargs)
        finally:
            self.inside = False
        results, form = pytree.tree_flatten(result)
        if not results or not all(map(_clear, results)):
            return result
        first.form, first.outputs = form, results
        return pytree.tree_unflatten(_mark("Leave", first.number, results, results), form)


def _understood(value: object) -> bool:
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _clear(value: object) -> bool:
    """Whether it is a tensor whose sizes do not hang on numbers, as of what `nonzero` finds."""
    return isinstance(value, Tensor) and not free_unbacked_symbols(value)


def _described(value: object) -> Hashable:
    """What a graph may hang on: of a tensor type and shape, with the tracer's names of sizes."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(map(str, value.shape))
    return type(value), value


def _mark(name: str, number: int, inputs: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """A node of our own that gives tensors of the same types and shapes as those of `like`."""
    made = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{name}",
        inputs,
        {"number": number},
        dtypes=[one.dtype for one in like],
        shapes=[one.shape for one in like],
        version=1,
    )
    return list(made)


__all__ = ["DOMAIN", "repeats_left_out"]
