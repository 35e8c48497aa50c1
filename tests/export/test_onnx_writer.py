"""The ONNX files: names, shapes, operators, weights, and numbers on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laco_deploy.model.checkpoint import Checkpoint
from laco_export.job import ExportJob
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_runtimes import graphs
from laco_runtimes.errors import ExportError
from laco_runtimes.graphs import GraphSpec, TensorSpec
from tests.bundles import RandomBundles
from tests.export.passes import Floats, conversation, largest_difference
from tests.export.static_graphs import DYNAMIC, assert_static_but_for_tiles

ENCODERS = {
    "onnx/vision_encoder.onnx": 16,
    "baseline/uncompressed/vision_encoder.onnx": 64,
    "baseline/external/vision_encoder.onnx": 16,
    "baseline/downsampled/vision_encoder.onnx": 16,
}
"""Encoder graphs of a bundle and their visual tokens."""


@pytest.fixture(scope="module")
def bundle(bundle_for: RandomBundles) -> Path:
    """The fp32 graphs of a bundle, which hold what was pruned from it as well."""
    bundle_for("onnxruntime")
    return bundle_for.graphs


def declared(job: ExportJob, tokens: int = 16) -> dict[str, GraphSpec]:
    facts = job.language
    specs = (
        graphs.vision_encoder(job.vision.image_size, tokens, facts.hidden_size),
        graphs.embed_tokens(facts.hidden_size),
        graphs.decoder(facts),
    )
    return {spec.name: spec for spec in specs}


def tensors(values: list[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    names = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}
    return tuple(
        TensorSpec(
            value.name,
            names[value.type.tensor_type.elem_type],
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


@pytest.mark.parametrize("path", [*ENCODERS, "onnx/embed_tokens.onnx", "onnx/decoder.onnx"])
def test_a_graph_is_what_its_declaration_says(bundle: Path, job: ExportJob, path: str) -> None:
    model = onnx.load(bundle / path, load_external_data=False)
    spec = declared(job, ENCODERS.get(path, 16))[Path(path).stem]
    assert tensors(model.graph.input) == spec.inputs
    assert tensors(model.graph.output) == spec.outputs
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 23)]
    assert not model.functions


@pytest.mark.parametrize("path", [*ENCODERS, "onnx/embed_tokens.onnx", "onnx/decoder.onnx"])
def test_weights_lie_in_one_file_beside_the_graph(bundle: Path, path: str) -> None:
    model = onnx.load(bundle / path, load_external_data=False)
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {f"{Path(path).name}.data"}
    assert (bundle / path).stat().st_size < 100_000


@pytest.mark.parametrize("path", ENCODERS)
def test_an_encoder_is_static_but_for_tiles(bundle: Path, path: str) -> None:
    used = assert_static_but_for_tiles(bundle / path)
    assert {"Attention", "RMSNormalization"} <= used
    # A grid that r divides needs no fitting, and AIMv2 has no CLS.
    assert not used & {"Slice", "Concat", "Pad"}


def test_the_decoder_is_made_of_operators_that_engines_fuse(bundle: Path, job: ExportJob) -> None:
    model = onnx.load(bundle / "onnx/decoder.onnx", load_external_data=False)
    layers = job.language.layers
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Attention"] == layers
    assert counts["RotaryEmbedding"] == 2 * layers
    assert counts["RMSNormalization"] == 2 * layers + 1
    assert counts["Softmax"] == counts["Expand"] == counts["Tile"] == 0


def test_all_layers_share_one_mask_of_floats(bundle: Path) -> None:
    model = onnx.load(bundle / "onnx/decoder.onnx", load_external_data=False)
    [mask] = {node.input[3] for node in model.graph.node if node.op_type == "Attention"}
    [kind] = {one.type.tensor_type.elem_type for one in model.graph.value_info if one.name == mask}
    assert kind == onnx.TensorProto.FLOAT


def test_onnx_runtime_decodes_as_transformers_does(
    bundle: Path, checkpoint: Checkpoint, job: ExportJob
) -> None:
    session = onnxruntime.InferenceSession(bundle / "onnx/decoder.onnx")
    names = [one.name for one in session.get_inputs()]
    empty = np.zeros((2, job.language.kv_heads, 0, job.language.head_dim), np.float32)
    cache = [empty] * (2 * job.language.layers)

    def decode(embeds: Floats, mask: NDArray[np.int64], positions: NDArray[np.int64]) -> Floats:
        inputs = dict(zip(names, (embeds, mask, positions, *cache), strict=True))
        logits, *cache[:] = session.run(None, inputs)
        return np.asarray(logits[:, 0])

    assert largest_difference(conversation(checkpoint.model), decode) < 1e-4


class Lookup(nn.Module):
    """Adds a position table that is read by constant indices, as AIMv2 does."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 8)
        self.register_buffer("rows", torch.arange(rows)[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(self.rows)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class FirstToken(nn.Module):
    """Puts a learned token before the others, as InternViT does, repeated for every tile."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)


class Apply(nn.Module):
    """Any function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def edges(x: Tensor) -> Tensor:
    """Cuts at places that do not hang on the input, and joins along an inner dimension."""
    return torch.cat([x[:, 1:], x[:, -2:-1], x[:, :1]], dim=1)


def spec_of(*dims: int | str, outputs: tuple[int | str, ...] | None = None) -> GraphSpec:
    return GraphSpec(
        "small",
        (TensorSpec("x", "float32", dims),),
        (TensorSpec("y", "float32", outputs or dims),),
    )


def test_a_large_table_read_at_constant_places_is_folded(tmp_path: Path) -> None:
    path = write_graph(Lookup(5000), spec_of("tiles", 5000, 8), tmp_path, allowed_ops=ENCODER_OPS)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Add"]


@pytest.mark.parametrize(
    ("module", "spec", "message"),
    [
        (nn.Linear(8, 4), spec_of("tiles", 8), r"shape of output 'y'.*'tiles', 8.*tiles,4"),
        (Apply(torch.neg), spec_of("tiles", 8, outputs=("batch", 8)), r"shape of output 'y'"),
        (nn.Hardswish(), spec_of("tiles", 8), r"needs operator HardSwish"),
        (Branch(), spec_of("tiles", 8), r"cannot be traced: [^\n]*$"),
    ],
)
def test_a_graph_that_is_not_as_declared_is_refused(
    tmp_path: Path, module: nn.Module, spec: GraphSpec, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        write_graph(module, spec, tmp_path / "out", allowed_ops=ENCODER_OPS)
    assert not (tmp_path / "out").exists()


def test_no_operator_of_an_encoder_computes_shapes() -> None:
    assert not ENCODER_OPS & DYNAMIC


def test_slices_and_joins_at_constant_places_are_static(tmp_path: Path) -> None:
    spec = spec_of("tiles", 5, 8, outputs=("tiles", 6, 8))
    path = write_graph(Apply(edges), spec, tmp_path, allowed_ops=ENCODER_OPS)
    assert assert_static_but_for_tiles(path) == {"Slice", "Concat"}
    x = torch.randn(3, 5, 8)
    assert np.array_equal(run(path, x), edges(x).numpy())


def test_a_constant_token_goes_before_the_others_without_a_computed_shape(tmp_path: Path) -> None:
    module = FirstToken()
    spec = spec_of("tiles", 5, 8, outputs=("tiles", 6, 8))
    path = write_graph(module, spec, tmp_path, allowed_ops=ENCODER_OPS)
    assert assert_static_but_for_tiles(path) == {"Pad", "Add"}
    for tiles in (1, 3):
        x = torch.randn(tiles, 5, 8)
        assert np.array_equal(run(path, x), module(x).detach().numpy())


def run(path: Path, x: Tensor) -> Floats:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize(
    ("function", "outputs", "extra_ops", "message"),
    [
        # Cut where only the running graph knows.
        (lambda x: x[:, : x.shape[0]], ("tiles", "cut"), {"Shape"}, r"Slice with a computed INT64"),
        (lambda x: x[1:], ("cut", 8), {}, r"Slice to shape \[tiles - 1,8\]"),
        # Tiles are the first dimension and stay it.
        (lambda x: x.T, (8, "tiles"), {}, r"Transpose to shape \[8,tiles\]"),
        (lambda x: torch.cat([x.T, x.T]), (16, "tiles"), {}, r"Transpose to shape \[8,tiles\]"),
        (lambda x: x.reshape(1, -1), (1, "all"), {}, r"Reshape to shape \[1,8\*tiles\]"),
    ],
)
def test_what_hangs_on_the_number_of_tiles_is_refused_whatever_the_operators(
    tmp_path: Path,
    function: Callable[[Tensor], Tensor],
    outputs: tuple[int | str, ...],
    extra_ops: set[str],
    message: str,
) -> None:
    spec = spec_of("tiles", 8, outputs=outputs)
    allowed = ENCODER_OPS | set(extra_ops)
    with pytest.raises(ExportError, match=message):
        write_graph(Apply(function), spec, tmp_path / "out", allowed_ops=allowed)
    assert not (tmp_path / "out").exists()
