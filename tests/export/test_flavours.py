"""Every flavour of the decoder computes what transformers does, from one file of weights."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from laco_export.audit import audit_decoder
from laco_export.flavours import FLAVOURS
from laco_export.graphs import DecoderGraph
from laco_runtimes import graphs
from laco_runtimes.errors import ConfigError, ExportError
from laco_runtimes.graphs import DecoderForm, GraphSpec
from tests.export.flavour_engines import (
    CAPACITY,
    FACTS,
    Decoder,
    Talk,
    largest_difference,
    small_model,
    talk,
)

Written = dict[str, tuple[Path, GraphSpec]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference() -> Talk:
    return talk(small_model())


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("stateful", False),
        ("static", True),  # the engine writes into the buffer that it reads
        ("contrib", False),
        ("contrib", True),
        ("concat", False),
    ],
)
def test_a_flavour_answers_as_transformers_does(
    flavours: Written, reference: Talk, name: str, shared: bool
) -> None:
    path, spec = flavours[name]
    assert np.abs(reference.expected).max() > 1
    assert largest_difference(Decoder(path, spec, shared), reference) < 1e-5


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_flavour_is_what_its_declaration_says(flavours: Written, name: str) -> None:
    path, spec = flavours[name]
    model = onnx.load(path, load_external_data=False)
    kinds = {1: "float32", 7: "int64", 9: "bool"}
    for declared, found in ((spec.inputs, model.graph.input), (spec.outputs, model.graph.output)):
        tensors = [value.type.tensor_type for value in found]
        assert [one.name for one in declared] == [value.name for value in found]
        assert [one.dtype for one in declared] == [kinds[one.elem_type] for one in tensors]
        dims = [tuple(dim.dim_param or dim.dim_value for dim in one.shape.dim) for one in tensors]
        assert [one.dims for one in declared] == dims
    opsets = {one.domain: one.version for one in model.opset_import}
    others = {"com.microsoft": 1} if name == "contrib" else {}
    assert opsets == {"": FLAVOURS[name].opset, **others}
    assert set(audit_decoder(path, name)) <= FLAVOURS[name].operators
    assert "_" not in {value for node in model.graph.node for value in node.output}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def test_static_writes_in_place_and_attends_under_a_mask_alone(flavours: Written) -> None:
    graph = onnx.load(flavours["static"][0], load_external_data=False).graph
    inputs = {value.name for value in graph.input}
    outputs = {value.name for value in graph.output}
    scatters = [node for node in graph.node if node.op_type == "TensorScatter"]
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert len(scatters) == 2 * FACTS.layers
    assert len(attentions) == FACTS.layers
    for node in scatters:
        cache, _, places = node.input
        assert cache in inputs
        assert node.output[0] == cache.replace("past_key_values", "present")
        assert node.output[0] in outputs
        assert places == "write_indices"
        assert attributes(node)["axis"] == -2
    for node in attentions:  # no past, no nonpad_kv_seqlen, no is_causal, one output
        assert node.input[3:] == ["attention_mask"]
        assert len(node.output) == 1
        assert not attributes(node).get("is_causal")


def test_contrib_is_fused_but_for_its_matrix_products(flavours: Written) -> None:
    graph = onnx.load(flavours["contrib"][0], load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["GroupQueryAttention"] == FACTS.layers
    assert counts["SkipSimplifiedLayerNormalization"] == 2 * FACTS.layers
    assert counts["MatMul"] == 7 * FACTS.layers + 1
    assert counts["Transpose"] == counts["Reshape"] == 0
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            found = attributes(node)
            assert found["do_rotary"] == 1
            assert (found["num_heads"], found["kv_num_heads"]) == (FACTS.heads, FACTS.kv_heads)
            assert found["scale"] == FACTS.head_dim**-0.5


def places(path: Path) -> dict[str, tuple[str, int]]:
    """Large tensors of a graph: the file that each is in, and where."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found[tensor.name] = entries["location"], int(entries["offset"])
    return found


def test_all_flavours_share_one_file_of_weights_that_holds_each_once(flavours: Written) -> None:
    folder = flavours["stateful"][0].parent
    assert [path.name for path in folder.glob("*.data")] == ["decoder.onnx.data"]
    source = places(flavours["stateful"][0])
    size = 4 * sum(weight.numel() for weight in small_model().parameters())  # tied head: once
    added = {place for path, _ in flavours.values() for place in places(path).values()}
    added -= set(source.values())
    # Two tables of angles each for `static` and `contrib`, one of them perhaps in both.
    assert len(added) <= 4
    tables = 2 * (CAPACITY + FACTS.max_positions) * FACTS.head_dim // 2 * 4
    padding = 64 * (len(source) + len(added))
    assert (folder / "decoder.onnx.data").stat().st_size <= size + tables + padding
    for path, _ in flavours.values():
        assert set(source.values()) <= set(places(path).values()), path.name


def test_a_flavour_that_is_not_known_or_lacks_its_capacity_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no decoder flavour 'paged'.*stateful, static"):
        graphs.decoder(FACTS, DecoderForm("paged"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"cache of None tokens.*Give the capacity"):
        graphs.decoder(FACTS, DecoderForm("static"))
    model = small_model()
    with pytest.raises(ExportError, match=r"how many positions.*Give `positions`"):
        DecoderGraph(
            model.model,
            nn.Linear(1, 1),
            head_dim=16,
            rope_theta=1e4,
            flavour="contrib",
        )


def test_only_the_cache_changes_with_its_type() -> None:
    for name in FLAVOURS:
        plain = DecoderForm(FLAVOURS[name].name, capacity=8)
        exact = graphs.decoder(FACTS, plain)
        half = graphs.decoder(FACTS, replace(plain, cache_dtype="bfloat16"))
        pairs = zip((*exact.inputs, *exact.outputs), (*half.inputs, *half.outputs), strict=True)
        for one, other in pairs:
            cached = one.name.startswith(("past_key_values.", "present."))
            assert other == replace(one, dtype="bfloat16" if cached else one.dtype)


@pytest.mark.parametrize("name", ["static", "concat"])
def test_the_parser_of_tensorrt_takes_it_whole(flavours: Written, name: str) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    import tensorrt_rtx as trt

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: object, message: str) -> None:
            self.messages.append(message)

    log = Log()
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(flavours[name][0]))
    assert parser.num_errors == 0
    assert not [message for message in log.messages if "Unused Input" in message]
    assert network.num_inputs == len(flavours[name][1].inputs)


@pytest.mark.full
def test_weights_over_2_gib_are_written_once_and_never_held_three_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A process of its own: its peak is that of this model, and its memory comes back.
    paths = [str(ROOT / folder) for folder in (".", "export", "runtimes")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.full_size_decoder", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        check=True,
    )
    figures = json.loads(done.stdout)
    with capsys.disabled():
        print(f"\n{figures}")
    assert figures["data_bytes"] > 2**31
    assert figures["data_bytes"] < 1.02 * figures["weight_bytes"]
    assert figures["peak_bytes"] < 2 * figures["weight_bytes"] + 1.5e9
    assert figures["difference"] < 1e-4 * figures["largest"]
