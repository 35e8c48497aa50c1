"""A graph whose repeated blocks are traced once is the one that a trace of all of it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnxscript import ir
from torch import Tensor, nn

from laco_deploy.model import LacoForConditionalGeneration
from laco_export import block_copies, onnx_writer
from laco_export.flavours import FLAVOURS
from laco_export.graphs import VisionGraph
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_runtimes import graphs
from laco_runtimes.graphs import GraphSpec, TensorSpec
from tests.export.flavour_engines import FACTS, small_model, write_flavour
from tests.model.tower_samples import KINDS, laco_config, randomize

SIZES = {"tiles": 3, "batch": 2, "sequence": 4, "past": 6, "total": 10}
DEEP = FACTS.model_copy(update={"layers": 4})


@dataclass
class Both:
    """One graph written in both ways."""

    stamped: Path
    whole: Path
    copies: int
    """Blocks that were not traced."""

    def assert_same(self) -> None:
        """The same nodes in the same order, which read the same values and weights."""
        assert laid_out(self.stamped) == laid_out(self.whole)

    def assert_same_answers(self) -> None:
        """The same numbers on ONNX Runtime."""
        sessions = [onnxruntime.InferenceSession(path) for path in (self.stamped, self.whole)]
        inputs = {one.name: example(one) for one in sessions[0].get_inputs()}
        for one, other in zip(*(session.run(None, inputs) for session in sessions), strict=True):
            assert np.array_equal(one, other)
            assert np.isfinite(one).all()


def example(declared: Any) -> Any:
    sizes = [SIZES.get(size, size) for size in declared.shape]
    generator = np.random.default_rng(len(declared.name))
    if declared.type == "tensor(float)":
        return generator.standard_normal(sizes, dtype=np.float32)
    if declared.name == "attention_mask":
        return np.ones(sizes, bool if declared.type == "tensor(bool)" else np.int64)
    return np.zeros(sizes, np.int64) + 2


def laid_out(path: Path) -> list[Any]:
    """A graph without the names of its values; weights with their names and places in the file."""
    graph, known = ir.load(path).graph, {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            known[value] = f"{value.name} at {tensor.offset}"
        elif tensor is not None:
            known[value] = f"{tensor.dtype} {tensor.numpy().tolist()}"
    known |= {value: str(value.name) for value in graph.inputs}
    nodes: list[Any] = []
    for number, node in enumerate(graph):
        known |= {value: f"{number}.{index}" for index, value in enumerate(node.outputs)}
        attributes = {
            key: str(one.value)
            for key, one in node.attributes.items()
            if one.type != ir.AttributeType.TENSOR
        }
        kinds = [(str(value.shape), value.dtype) for value in node.outputs]
        read = [value and known[value] for value in node.inputs]
        nodes.append((node.domain, node.op_type, attributes, read, kinds))
    named = [
        value.name
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    return [*nodes, named, [(value.name, known[value]) for value in graph.outputs]]


def both(write: Callable[[Path], Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Both:
    counts: list[int] = []

    def counted(graph: ir.Graph) -> None:
        counts.append(sum(node.op_type == "Repeat" for node in graph))
        block_copies.put_copies(graph)

    @contextmanager
    def nothing(module: nn.Module, spec: GraphSpec) -> Iterator[None]:
        yield

    with monkeypatch.context() as patch:
        patch.setattr(onnx_writer, "put_copies", counted)
        stamped = write(folder / "stamped")
        patch.setattr(onnx_writer, "repeats_left_out", nothing)
        whole = write(folder / "whole")
    assert counts[1:] == [0], "the second is to be traced as a whole"
    return Both(stamped, whole, counts[0])


@pytest.mark.full  # by default exports of the shipped encoder are held against PyTorch
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_with_a_merger_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mergers = [{"after_block": 2, "kind": "laco"}]
    model = randomize(LacoForConditionalGeneration(laco_config(kind, mergers, blocks=4)))
    config = model.config
    tokens = int(np.prod(config.merged_grid))
    spec = graphs.vision_encoder(config.image_size, tokens, config.text.hidden_size)
    made = both(
        lambda folder: write_graph(VisionGraph(model), spec, folder, allowed_ops=ENCODER_OPS),
        tmp_path,
        monkeypatch,
    )
    assert made.copies == 2  # of four, one is traced on either side of the merger
    made.assert_same()
    made.assert_same_answers()


@pytest.mark.parametrize(
    "name",  # each takes ten seconds
    [one if one == "stateful" else pytest.param(one, marks=pytest.mark.full) for one in FLAVOURS],
)
def test_a_decoder_in_every_flavour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = small_model(DEEP)
    made = both(
        lambda folder: write_flavour(model, name, folder, facts=DEEP)[0], tmp_path, monkeypatch
    )
    assert made.copies == 2  # the first is added to nothing, the second is traced
    made.assert_same()
    if name != "contrib":  # it may attend to no more than its mask says
        made.assert_same_answers()


class Scaled(nn.Module):
    """A block whose graph hangs on more than its weights."""

    def __init__(self, eps: float = 1e-5, act: nn.Module | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, eps)
        self.linear = nn.Linear(8, 8)
        self.act = act or nn.GELU()
        self.scale = scale

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        x = x + self.act(self.linear(self.norm(x))) * self.scale
        return x if extra is None else x + extra


class Activation(nn.Module):
    """As those of transformers, which hold the function that they apply."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.apply_to = partial(F.gelu, approximate=form)

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(x)


class Pair(Scaled):
    """Gives something beside a tensor."""

    def forward(self, x: Tensor, extra: Tensor | None = None) -> tuple[Tensor, int]:  # type: ignore[override]
        return super().forward(x, extra), 1


class Blocks(nn.Module):
    def __init__(self, *blocks: nn.Module, extra: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            made = block(x, extra=x * 2) if self.extra and index == 2 else block(x)
            x = made[0] if isinstance(made, tuple) else made
        return x


class Halved(Blocks):
    """The second half of its blocks is given half as many rows."""

    def forward(self, x: Tensor) -> Tensor:
        middle = len(self.blocks) // 2
        for index, block in enumerate(self.blocks):
            x = block(x[:, :2] if index == middle else x)
        return x


FORMS = ("none", "none", "tanh", "none")


def same(count: int) -> list[nn.Module]:
    return [Scaled() for _ in range(count)]


@pytest.mark.parametrize(
    ("module", "copies"),
    [
        (lambda: Blocks(*same(3), Scaled(eps=0.5), *same(1)), 3),
        (lambda: Blocks(*(Scaled(act=Activation(form)) for form in FORMS)), 2),
        (lambda: Blocks(*same(4), extra=True), 2),
        pytest.param(lambda: Halved(*same(6)), 4, marks=pytest.mark.full),
        pytest.param(lambda: Blocks(*same(4)), 3, marks=pytest.mark.full),
        pytest.param(lambda: Blocks(*same(2)), 0, marks=pytest.mark.full),
        pytest.param(lambda: Blocks(*(Pair() for _ in range(4))), 0, marks=pytest.mark.full),
        pytest.param(
            lambda: Blocks(*same(3), Scaled(act=nn.GELU("tanh")), *same(1)),
            3,
            marks=pytest.mark.full,
        ),
        pytest.param(
            lambda: Blocks(*same(3), Scaled(scale=3.0), *same(1)), 3, marks=pytest.mark.full
        ),
    ],
    ids=["eps", "held", "keyword", "halved", "equal", "few", "pair", "gelu", "scale"],
)
def test_only_blocks_that_differ_in_nothing_but_weights_are_copies(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Callable[[], nn.Module],
    copies: int,
) -> None:
    graph = randomize(module())
    rows = 2 if isinstance(graph, Halved) else 4
    spec = GraphSpec(
        "small",
        (TensorSpec("x", "float32", ("tiles", 4, 8)),),
        (TensorSpec("y", "float32", ("tiles", rows, 8)),),
    )
    made = both(lambda folder: write_graph(graph, spec, folder), tmp_path, monkeypatch)
    assert made.copies == copies
    made.assert_same()
    x = torch.randn(5, 4, 8)
    [y] = onnxruntime.InferenceSession(made.stamped).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), graph(x).detach(), atol=1e-5, rtol=1e-4)
    assert not any("forward" in vars(one) or one._forward_pre_hooks for one in graph.modules())
