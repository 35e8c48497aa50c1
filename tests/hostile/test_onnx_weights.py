"""An ONNX file cannot name bytes outside the files that its bundle lists, whatever its hash says.

Every bundle here is sealed again after it was spoiled: all hashes match.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.bundles import RandomBundles
from tests.hostile.conftest import Refused
from tests.hostile.sealing import change_tensor, external, seal_again, set_external

DECODER = "onnx/decoder_contrib.onnx"
DATA = "decoder.onnx.data"


def decoder_of(bundle: Path) -> Path:
    return bundle / DECODER


@pytest.mark.parametrize(
    "place",
    [
        "../secret",
        "../../secret",
        f"../onnx/{DATA}",
        f"./{DATA}",
        "/etc/passwd",
        "//etc/passwd",
        "C:\\windows\\win.ini",
        "C:secret",
        "..\\secret",
        f"x/../{DATA}",
        "",
        ".",
        "~/secret",
        "*/_ORT_MEM_ADDR_/*",
        "http://example.com/x",
        f"{DATA}\x00.png",
        " ",
    ],
)
def test_a_place_that_is_no_plain_name_is_refused(
    onnx_bundle: Path, refused: Refused, place: str
) -> None:
    (onnx_bundle.parent / "secret").write_bytes(b"x" * 10_000_000)
    change_tensor(decoder_of(onnx_bundle), lambda one: set_external(one, location=place))
    seal_again(onnx_bundle)
    message = refused(onnx_bundle)
    assert DECODER in message
    assert "no plain file name" in message


@pytest.mark.parametrize("place", ["none.data", "laco.json", "laco.sig", "DECODER.onnx.data"])
def test_a_place_that_the_manifest_does_not_list_is_refused(
    onnx_bundle: Path, refused: Refused, place: str
) -> None:
    change_tensor(decoder_of(onnx_bundle), lambda one: set_external(one, location=place))
    seal_again(onnx_bundle)
    assert f"'onnx/{place}', which the manifest does not list" in refused(onnx_bundle)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_place_that_is_a_link_is_refused(
    onnx_bundle: Path, refused: Refused, link: Callable[[Path, Path], None]
) -> None:
    data = onnx_bundle / "onnx" / DATA
    outside = onnx_bundle.parent / "outside"
    data.rename(outside)
    link(outside, data)
    assert DATA in refused(onnx_bundle)


def test_a_place_in_a_linked_folder_is_refused(onnx_bundle: Path, refused: Refused) -> None:
    (onnx_bundle / "onnx").rename(onnx_bundle.parent / "outside")
    (onnx_bundle / "onnx").symlink_to(onnx_bundle.parent / "outside")
    assert "'onnx'" in refused(onnx_bundle)


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize(
    "value", ["-1", "-9223372036854775808", "+1", "0x10", "1e3", " 1", "", "1.0", "٣", "9" * 20]
)
def test_an_offset_or_a_length_that_is_no_plain_number_is_refused(
    onnx_bundle: Path, refused: Refused, key: str, value: str
) -> None:
    change_tensor(decoder_of(onnx_bundle), lambda one: set_external(one, **{key: value}))
    seal_again(onnx_bundle)
    assert f"external data with {key} {value!r}" in refused(onnx_bundle)


@pytest.mark.parametrize("beyond", [1, 4096, 2**31, 2**63 - 1 - 10**6, 10**19 - 1 - 10**6])
def test_data_beyond_the_end_of_its_file_is_refused(
    onnx_bundle: Path, refused: Refused, beyond: int
) -> None:
    size = (onnx_bundle / "onnx" / DATA).stat().st_size

    def change(tensor: TensorProto) -> None:
        set_external(tensor, offset=size - int(external(tensor)["length"]) + beyond)

    change_tensor(decoder_of(onnx_bundle), change)
    seal_again(onnx_bundle)
    assert f"which ends at {size}" in refused(onnx_bundle)


@pytest.mark.parametrize("change", [-1, 1, 10**9])
def test_a_length_that_is_not_the_tensors_is_refused(
    onnx_bundle: Path, refused: Refused, change: int
) -> None:
    change_tensor(
        decoder_of(onnx_bundle),
        lambda one: set_external(one, length=int(external(one)["length"]) + change),
    )
    seal_again(onnx_bundle)
    assert "says that its data has length" in refused(onnx_bundle)


@pytest.mark.parametrize("dims", [[2**40, 2**40], [-1], [10**7]])
def test_a_tensor_larger_than_its_data_is_refused(
    onnx_bundle: Path, refused: Refused, dims: list[int]
) -> None:
    def change(tensor: TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)
        kept = [entry for entry in tensor.external_data if entry.key != "length"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)

    change_tensor(decoder_of(onnx_bundle), change)
    seal_again(onnx_bundle)
    message = refused(onnx_bundle)
    assert "which ends at" in message or "negative dimension" in message


@pytest.mark.parametrize("key", ["prepacked_0", "basepath", "mode", "data_type", "LOCATION"])
def test_an_unknown_key_of_external_data_is_refused(
    onnx_bundle: Path, refused: Refused, key: str
) -> None:
    change_tensor(decoder_of(onnx_bundle), lambda one: set_external(one, **{key: "1"}))
    seal_again(onnx_bundle)
    assert f"key {key!r}" in refused(onnx_bundle)


def test_two_places_for_one_tensor_are_refused(onnx_bundle: Path, refused: Refused) -> None:
    """Readers differ in which of two they take."""

    def change(tensor: TensorProto) -> None:
        tensor.external_data.add(key="location", value=DATA)

    change_tensor(decoder_of(onnx_bundle), change)
    seal_again(onnx_bundle)
    assert "key 'location'" in refused(onnx_bundle)


@pytest.mark.parametrize("location", [TensorProto.DEFAULT, 2])
def test_external_data_that_is_not_said_to_be_external_is_refused(
    onnx_bundle: Path, refused: Refused, location: int
) -> None:
    graph = decoder_of(onnx_bundle)
    # As bytes: protobuf itself refuses to write an enumeration's value that it does not know.
    data = graph.read_bytes()
    assert b"\x70\x01" in data
    graph.write_bytes(data.replace(b"\x70\x01", bytes([0x70, location])))
    seal_again(onnx_bundle)
    assert "does not say clearly where its data is" in refused(onnx_bundle)


def leaking() -> TensorProto:
    """A tensor whose data is a file of the system."""
    tensor = TensorProto(name="leak", data_type=TensorProto.UINT8, dims=[16])
    tensor.data_location = TensorProto.EXTERNAL
    set_external(tensor, location="../../../../etc/passwd", offset=0, length=16)
    return tensor


def in_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(leaking())


def in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["leak"], value=leaking()))


def in_list_of_tensors(model: onnx.ModelProto) -> None:
    node = helper.make_node("Custom", [], ["leak"])
    node.attribute.append(helper.make_attribute("values", [leaking()]))
    model.graph.node.append(node)


def in_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [], [leaking()])
    inner = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    outer = helper.make_graph([inner], "outer", [], [])
    model.graph.node.append(helper.make_node("Loop", ["m", "c"], ["z"], body=outer))


def in_list_of_graphs(model: onnx.ModelProto) -> None:
    node = helper.make_node("Custom", [], ["leak"])
    graph = helper.make_graph([], "g", [], [], [leaking()])
    node.attribute.append(helper.make_attribute("graphs", [graph]))
    model.graph.node.append(node)


def in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["leak"], value=leaking())
    model.functions.append(
        helper.make_function("d", "F", [], ["leak"], [node], [helper.make_opsetid("", 23)])
    )


def in_default_of_function(model: onnx.ModelProto) -> None:
    function = helper.make_function("d", "F", [], [], [], [helper.make_opsetid("", 23)])
    function.attribute_proto.append(helper.make_attribute("value", leaking()))
    model.functions.append(function)


def in_sparse_initializer(model: onnx.ModelProto) -> None:
    sparse = onnx.SparseTensorProto(dims=[16])
    sparse.values.CopyFrom(leaking())
    model.graph.sparse_initializer.append(sparse)


def in_sparse_attribute(model: onnx.ModelProto) -> None:
    sparse = onnx.SparseTensorProto(dims=[16])
    sparse.indices.CopyFrom(leaking())
    model.graph.node.append(helper.make_node("Constant", [], ["leak"], sparse_value=sparse))


@pytest.mark.parametrize(
    "hide",
    [
        in_initializer,
        in_constant,
        in_list_of_tensors,
        in_branch,
        in_list_of_graphs,
        in_function,
        in_default_of_function,
        in_sparse_initializer,
        in_sparse_attribute,
    ],
)
def test_a_leaking_tensor_is_found_wherever_it_hides(
    onnx_bundle: Path, refused: Refused, hide: Callable[[onnx.ModelProto], None]
) -> None:
    graph = decoder_of(onnx_bundle)
    model = onnx.load(graph, load_external_data=False)
    hide(model)
    graph.write_bytes(model.SerializeToString())
    seal_again(onnx_bundle)
    message = refused(onnx_bundle)
    assert "'leak' has its data in '../../../../etc/passwd'" in message


def test_a_training_graph_is_refused(onnx_bundle: Path, refused: Refused) -> None:
    graph = decoder_of(onnx_bundle)
    model = onnx.load(graph, load_external_data=False)
    model.training_info.add()
    graph.write_bytes(model.SerializeToString())
    seal_again(onnx_bundle)
    assert "field 20 of ModelProto" in refused(onnx_bundle)


def test_compiled_code_of_one_device_is_refused(onnx_bundle: Path, refused: Refused) -> None:
    graph = decoder_of(onnx_bundle)
    model = onnx.load(graph, load_external_data=False)
    model.graph.node.append(
        helper.make_node("EPContext", [], ["x"], "x", domain="com.microsoft", embed_mode=0)
    )
    graph.write_bytes(model.SerializeToString())
    seal_again(onnx_bundle)
    assert "EPContext" in refused(onnx_bundle)


def test_a_graph_that_no_engine_loads_is_checked_as_well(
    onnx_bundle: Path, refused: Refused
) -> None:
    extra = onnx_bundle / "onnx" / "extra.ONNX"
    extra.write_bytes(decoder_of(onnx_bundle).read_bytes())
    change_tensor(extra, lambda one: set_external(one, location="../secret"))
    seal_again(onnx_bundle)
    assert "'onnx/extra.ONNX'" in refused(onnx_bundle)


def test_the_encoder_of_a_baseline_is_checked_as_well(
    bundle_for: RandomBundles, refused: Refused, tmp_path: Path
) -> None:
    bundle = tmp_path / "engine"
    shutil.copytree(bundle_for("onnxruntime"), bundle)
    name = "baseline/uncompressed/vision_encoder.onnx"
    change_tensor(bundle / name, lambda one: set_external(one, location="../secret"))
    seal_again(bundle)
    assert name in refused(bundle)
