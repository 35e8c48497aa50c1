"""Our readers of ONNX and IR: they know all of the format, and any bytes end in `BundleError`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from laco_runtimes import onnx_files
from laco_runtimes.errors import BundleError
from laco_runtimes.ir_files import check_ir
from laco_runtimes.onnx_files import BITS, MESSAGES, check_onnx
from tests.hostile.sealing import set_external

SIZES = {"onnx/a.onnx.data": 64, "openvino/a.bin": 64}


def tiny_model() -> onnx.ModelProto:
    """Every kind of message that can hold a tensor, and tensors inside and outside."""
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    outside.data_location = TensorProto.EXTERNAL
    set_external(outside, location="a.onnx.data", offset=0, length=64)
    inside = helper.make_tensor("c", TensorProto.INT64, [2], [1, 2])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=inside)], "branch", [], []
    )
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(inside)
    sparse.indices.CopyFrom(inside)
    nodes = [
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("F", ["x"], ["z"], domain="d", axes=[1, 2], scale=0.5, mode="m"),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tiles", 4])
    graph = helper.make_graph(nodes, "g", [value], [value], [outside, inside])
    function = helper.make_function(
        "d", "F", ["x"], ["z"], nodes[:1], [helper.make_opsetid("", 23)]
    )
    model = helper.make_model(graph, functions=[function], ir_version=10)
    model.metadata_props.add(key="k", value="v")
    return model


ONNX = tiny_model().SerializeToString()
IR = b"""<?xml version="1.0"?>
<net name="a" version="11"><layers>
<layer id="0" name="w" type="Const" version="opset1">
<data element_type="f32" shape="4, 4" offset="0" size="64"/>
<output><port id="0" precision="FP32"><dim>4</dim></port></output></layer>
<layer id="1" name="t" type="Const" version="opset1">
<data element_type="string" shape="1" offset="3" size="9"/></layer>
<layer id="2" name="p" type="Parameter" version="opset1">
<data shape="?,4" element_type="f32"/></layer>
</layers><edges/><rt_info/></net>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def read_onnx(folder: Path, data: bytes) -> None:
    (folder / "a.onnx").write_bytes(data)
    check_onnx(folder / "a.onnx", "onnx/a.onnx", {**SIZES, "onnx/a.onnx": len(data)})


def read_ir(folder: Path, data: bytes) -> None:
    (folder / "a.xml").write_bytes(data)
    check_ir(folder / "a.xml", "openvino/a.xml", {**SIZES, "openvino/a.xml": len(data)})


def test_whole_files_are_accepted(folder: Path) -> None:
    read_onnx(folder, ONNX)
    read_ir(folder, IR)


def holds_tensors(kind: Descriptor, seen: frozenset[str] = frozenset()) -> bool:
    if kind.name == "TensorProto":
        return True
    if kind.name in seen:
        return False
    return any(
        one.message_type is not None and holds_tensors(one.message_type, seen | {kind.name})
        for one in kind.fields
    )


@pytest.mark.parametrize("name", sorted(set(MESSAGES) - {"StringStringEntryProto"}))
def test_the_reader_knows_every_field_through_which_onnx_reaches_a_tensor(name: str) -> None:
    kind: Descriptor = getattr(onnx, name).DESCRIPTOR
    for one in kind.fields:
        part = one.message_type
        if name == "TensorProto" or part is None or not holds_tensors(part):
            continue
        allowed = one.number in MESSAGES[name].known
        assert MESSAGES[name].parts.get(one.number) == (part.name if allowed else None)
        if allowed and not one.is_repeated:
            assert one.number in MESSAGES[name].once
    assert MESSAGES[name].known <= {one.number for one in kind.fields}


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values()) - {0, 8}))
def test_the_reader_has_the_size_in_which_onnx_writes_a_type(kind: int) -> None:
    if kind not in BITS:  # of 6 bits: no tool keeps them outside
        assert TensorProto.DataType.Name(kind).startswith("FLOAT6")
        return
    values = np.zeros(8, helper.tensor_dtype_to_np_dtype(kind))
    assert len(numpy_helper.from_array(values).raw_data) == BITS[kind]


def test_a_file_of_nothing_but_fields_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "MAX_FIELDS", 1000)
    with pytest.raises(BundleError, match="more than 1000 fields"):
        read_onnx(folder, b"\x08\x0a" * 1001)


def test_endless_nesting_is_given_up(folder: Path) -> None:
    data = b""
    for _ in range(200):  # graph > node > attribute > graph ...
        for tag in (0x32, 0x2A, 0x0A):
            length = onnx_varint(len(data))
            data = bytes([tag]) + length + data
    with pytest.raises(BundleError, match="nests more than 100"):
        read_onnx(folder, b"\x3a" + onnx_varint(len(data)) + data)


def onnx_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat"]),
        st.integers(0, 10_000),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    for kind, place, value in changes:
        at = place % (len(data) + 1)
        data = {
            "set": data[:at] + bytes([value]) + data[at + 1 :],
            "cut": data[:at] + data[at + value :],
            "insert": data[:at] + bytes([value]) + data[at:],
            "repeat": data[:at] + data[max(0, at - value) : at] + data[at:],
        }[kind]
    return data


EXAMPLES = pytest.mark.parametrize(
    "examples", [100, pytest.param(5000, marks=pytest.mark.full)], ids=["few", "many"]
)
NO_HANG_MS = 5000
"""A mutated file of 2 kB takes one; this is for a reader that goes in circles."""


@EXAMPLES
def test_a_mutated_onnx_file_is_a_bundle_error_or_harmless(folder: Path, examples: int) -> None:
    @settings(max_examples=examples, deadline=NO_HANG_MS)
    @given(changes=mutations)
    def check(changes: list[tuple[str, int, int]]) -> None:
        data = mutated(ONNX, changes)
        with suppress(BundleError):
            read_onnx(folder, data)
            check_against_onnx(data)

    check()


@EXAMPLES
def test_a_mutated_ir_is_a_bundle_error_or_harmless(folder: Path, examples: int) -> None:
    @settings(max_examples=examples, deadline=NO_HANG_MS)
    @given(changes=mutations)
    def check(changes: list[tuple[str, int, int]]) -> None:
        data = mutated(IR, changes)
        with suppress(BundleError):
            read_ir(folder, data)
            for layer in ElementTree.fromstring(data).iter("data"):
                if {"offset", "size"} <= layer.attrib.keys():
                    assert 0 <= int(layer.attrib["offset"]) + int(layer.attrib["size"]) <= 64

    check()


@EXAMPLES
def test_any_bytes_are_a_bundle_error_or_harmless(folder: Path, examples: int) -> None:
    @settings(max_examples=examples, deadline=NO_HANG_MS)
    @given(data=st.binary(max_size=200))
    def check(data: bytes) -> None:
        for read in (read_onnx, read_ir):
            with suppress(BundleError):
                read(folder, data)

    check()


def check_against_onnx(data: bytes) -> None:
    """What we accept must be inside its file in the eyes of protobuf too, if that reads it."""
    try:
        model = onnx.load_from_string(data)
    except Exception:
        return
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location == TensorProto.EXTERNAL:
            assert entries["location"] == "a.onnx.data"
            assert int(entries.get("offset", 0)) + int(entries.get("length", 0)) <= 64
        else:
            assert not entries
