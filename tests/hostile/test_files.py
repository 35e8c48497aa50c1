"""Files of a real bundle, of either target: changed, added, lost, swapped, linked, or code."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laco_runtimes.bundle import open_bundle, read_manifest, seal_bundle
from laco_runtimes.errors import BundleError
from laco_runtimes.manifest import MANIFEST_NAME, BundleFacts
from tests.hostile.conftest import Refused
from tests.hostile.sealing import seal_again


def listed(bundle: Path) -> list[str]:
    return [entry.path for entry in read_manifest(bundle).files]


def test_the_bundles_hold_what_is_spoiled_here(whole_bundle: Path) -> None:
    names = listed(whole_bundle)
    assert len(names) > 10
    assert {"README.md", "config.json", "selftest.npz", "tokenizer.json"} <= set(names)
    assert {"onnx/decoder.onnx.data", "openvino/openvino_language_model.bin"} & set(names)
    assert len(open_bundle(whole_bundle).graphs) >= 5


def test_one_damaged_byte_in_any_file_is_noticed_and_the_file_named(
    whole_bundle: Path, refused: Refused
) -> None:
    draw = random.Random(5)
    for name in listed(whole_bundle):
        path = whole_bundle / name
        whole = path.read_bytes()
        spoiled = bytearray(whole)
        spoiled[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(spoiled)
        assert f"file {name!r}" in refused(whole_bundle)
        path.write_bytes(whole)
    open_bundle(whole_bundle)


def test_verifying_says_what_loading_says(bundle: Path, refused: Refused) -> None:
    (bundle / "config.json").write_bytes(b"{}")
    with pytest.raises(BundleError) as verified:
        open_bundle(bundle)
    assert str(verified.value) == refused(bundle)


def test_one_damaged_byte_anywhere_in_the_manifest_never_loads_another_file(bundle: Path) -> None:
    """A flip may hit a free text (`created_by`); then every file is still the one listed."""
    path = bundle / MANIFEST_NAME
    whole, files = path.read_bytes(), read_manifest(bundle).files
    draw = random.Random(6)
    for _ in range(100):
        spoiled = bytearray(whole)
        spoiled[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(spoiled)
        try:
            manifest = read_manifest(bundle)
        except BundleError:
            continue
        if manifest.files == files:
            continue
        with pytest.raises(BundleError):
            open_bundle(bundle)


@pytest.mark.parametrize("change", ["cut", "grown", "emptied"])
def test_a_file_of_another_length_is_noticed(
    whole_bundle: Path, refused: Refused, change: str
) -> None:
    for name in listed(whole_bundle):
        path = whole_bundle / name
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[:-1], "grown": whole + b"\x00", "emptied": b""}[change])
        assert f"file {name!r}" in refused(whole_bundle)
        path.write_bytes(whole)


def test_a_lost_file_is_named(whole_bundle: Path, refused: Refused) -> None:
    for name in listed(whole_bundle):
        (whole_bundle / name).rename(whole_bundle.parent / "away")
        assert f"lost its file {name!r}" in refused(whole_bundle)
        (whole_bundle.parent / "away").rename(whole_bundle / name)


def test_swapped_files_are_noticed(bundle: Path, refused: Refused) -> None:
    one, other = bundle / "onnx" / "embed_tokens.onnx", bundle / "onnx" / "vision_encoder.onnx"
    swap = bundle.parent / "swap"
    one.rename(swap)
    other.rename(one)
    swap.rename(other)
    assert "'onnx/embed_tokens.onnx'" in refused(bundle)


@pytest.mark.parametrize(
    "name", ["extra.onnx", "onnx/decoder.onnx.data2", ".hidden", "new/folder/x", "laco.sig.old"]
)
def test_an_extra_file_is_named(bundle: Path, refused: Refused, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"")
    assert repr(name) in refused(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "tensorrt/decoder.plan",
        "decoder.engine",
        "decoder.TRT",
        "model.blob",
        "libcustom.so",
        "libcustom.so.1.2",
        "custom.dll",
        "custom.dylib",
        "custom.pyd",
        "run.exe",
        "weights.pt",
        "weights.pth",
        "weights.pkl",
        "weights.pickle",
    ],
)
def test_code_is_refused_even_if_it_is_listed(bundle: Path, refused: Refused, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"ftrt")
    seal_again(bundle)
    message = refused(bundle)
    assert repr(name) in message
    assert "code" in message


def test_code_is_not_sealed_either(bundle: Path) -> None:
    facts = read_manifest(bundle).model_dump(exclude={"files"})
    (bundle / MANIFEST_NAME).unlink()
    (bundle / "decoder.plan").write_bytes(b"ftrt")
    with pytest.raises(BundleError, match=r"'decoder\.plan', which is code"):
        seal_bundle(bundle, BundleFacts(**facts))
    assert not (bundle / MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    "names",
    [
        ("config2.json", "CONFIG2.json"),
        ("extra/one", "Extra/two"),
        ("onnx/decoder.onnx.DATA",),
        ("LACO.json",),
        ("Laco.sig",),
    ],
)
def test_names_that_differ_in_case_only_are_refused(
    bundle: Path, refused: Refused, names: tuple[str, ...]
) -> None:
    for name in names:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(b"")
    seal_again(bundle)
    message = refused(bundle)
    assert repr(names[-1]) in message or "'Extra'" in message
    assert "where case does not count" in message


@pytest.mark.parametrize("name", ["config.json/inside", "laco.json", "laco.sig", "x" * 201])
def test_a_list_that_no_folder_can_hold_is_refused(
    bundle: Path, refused: Refused, name: str
) -> None:
    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    data["files"].append({"path": name, "size": 0, "sha256": "0" * 64})
    path.write_text(json.dumps(data))
    message = refused(bundle)
    assert name[:40] in message
    assert "manifest" in message


@pytest.mark.parametrize("name", ["README.md", "decoder.bin", "model.pb", "model.tflite"])
def test_a_graph_of_another_kind_is_refused(bundle: Path, refused: Refused, name: str) -> None:
    if not (bundle / name).exists():
        (bundle / name).write_bytes(b"")
    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    data["decoder"] = name
    path.write_text(json.dumps(data))
    seal_again(bundle)
    assert f"names {name!r} as a graph" in refused(bundle)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.skipif(os.name != "posix", reason="needs special files")
@pytest.mark.parametrize("make", [make_fifo, link_to_device, link_to_nothing, link_to_itself])
@pytest.mark.parametrize("name", ["config.json", "laco.sig", "onnx/decoder.onnx.data", "extra"])
def test_a_special_file_is_refused_and_not_read(
    bundle: Path, refused: Refused, make: Callable[[Path], None], name: str
) -> None:
    (bundle / name).unlink(missing_ok=True)
    make(bundle / name)
    assert "is a link or no file" in refused(bundle)


@pytest.mark.parametrize("value", ["[" * 100_000, '{"a":' * 100_000])
def test_a_deep_manifest_is_refused(bundle: Path, refused: Refused, value: str) -> None:
    (bundle / MANIFEST_NAME).write_text(value)
    assert "damaged" in refused(bundle)


def test_a_deep_value_in_a_manifest_is_refused(bundle: Path, refused: Refused) -> None:
    def nested(depth: int) -> Any:
        return [nested(depth - 1)] if depth else 1

    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    data["versions"] = nested(400)
    path.write_text(json.dumps(data))
    assert "key 'versions'" in refused(bundle)


def test_a_key_that_stands_twice_is_refused(bundle: Path, refused: Refused) -> None:
    path = bundle / MANIFEST_NAME
    text = path.read_text()
    path.write_text(text.rstrip()[:-1] + ', "decoder": "onnx/decoder.onnx"}')
    assert "twice" in refused(bundle)
