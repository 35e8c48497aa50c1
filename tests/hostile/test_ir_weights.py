"""An OpenVINO IR cannot name bytes outside its `.bin`, whatever its hash says.

Every bundle here is sealed again after it was spoiled: all hashes match.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.conftest import Refused
from tests.hostile.sealing import seal_again

IR = "openvino/openvino_language_model.xml"
WEIGHTS = "openvino/openvino_language_model.bin"


def edit(bundle: Path, change: Callable[[str], str], name: str = IR) -> None:
    """Change the text of the IR; it must not stay the same."""
    text = (bundle / name).read_text()
    changed = change(text)
    assert changed != text
    (bundle / name).write_text(changed)
    seal_again(bundle)


def set_shape(shape: str) -> Callable[[str], str]:
    """Give the first constant another shape."""
    first = re.compile(r'(type="Const".*?shape=")[^"]*"', re.DOTALL)
    return lambda text: first.sub(rf'\g<1>{shape}"', text, count=1)


@pytest.mark.parametrize(
    "value", ["-1", "-9223372036854775808", "0x10", "1e3", " 8", "", "٣", "9" * 20]
)
@pytest.mark.parametrize("key", ["offset", "size"])
def test_an_offset_or_size_that_is_no_plain_number_is_refused(
    ir_bundle: Path, refused: Refused, key: str, value: str
) -> None:
    edit(ir_bundle, lambda text: re.sub(rf' {key}="[0-9]+"', f' {key}="{value}"', text, count=1))
    message = refused(ir_bundle)
    assert IR in message
    assert f"{key} {value!r}" in message


@pytest.mark.parametrize("beyond", [1, 4096, 2**32, 2**63 - 1, 2**64 - 4])
@pytest.mark.parametrize("key", ["offset", "size"])
def test_a_constant_beyond_the_end_of_its_file_is_refused(
    ir_bundle: Path, refused: Refused, key: str, beyond: int
) -> None:
    size = (ir_bundle / WEIGHTS).stat().st_size
    value = beyond if beyond > size else size + beyond
    edit(ir_bundle, lambda text: re.sub(rf' {key}="[0-9]+"', f' {key}="{value}"', text, count=1))
    message = refused(ir_bundle)
    assert f"which ends at {size}" in message or f"{key} '{value}'" in message


def test_a_constant_shorter_than_its_shape_is_refused(ir_bundle: Path, refused: Refused) -> None:
    edit(ir_bundle, set_shape("4096,4096"))
    assert "too few for its shape" in refused(ir_bundle)


def test_a_constant_of_negative_shape_is_refused(ir_bundle: Path, refused: Refused) -> None:
    edit(ir_bundle, set_shape("-1"))
    assert "has shape '-1'" in refused(ir_bundle)


def test_a_constant_without_a_place_is_refused(ir_bundle: Path, refused: Refused) -> None:
    edit(ir_bundle, lambda text: re.sub(r' offset="[0-9]+"', "", text, count=1))
    assert "offset ''" in refused(ir_bundle)


def test_a_constant_inside_a_loop_is_checked(ir_bundle: Path, refused: Refused) -> None:
    constant = (
        '<layer id="1" name="leak" type="Const" version="opset1">'
        '<data element_type="u8" shape="16" offset="99999999999" size="16"/></layer>'
    )
    loop = (
        '<layer id="99999" name="loop" type="Loop" version="opset5"><body><layers>'
        f"{constant}</layers></body></layer>"
    )
    edit(ir_bundle, lambda text: text.replace("</layers>", f"{loop}</layers>", 1))
    assert "'leak'" in refused(ir_bundle)


def test_another_layer_with_bytes_of_the_weights_is_checked(
    ir_bundle: Path, refused: Refused
) -> None:
    edit(
        ir_bundle,
        lambda text: text.replace(
            "<layers>",
            '<layers><layer id="99999" name="leak" type="constant" version="extension">'
            '<data offset="0" size="99999999999"/></layer>',
            1,
        ),
    )
    assert "'leak'" in refused(ir_bundle)


def test_weights_that_the_manifest_does_not_list_are_refused(
    ir_bundle: Path, refused: Refused
) -> None:
    (ir_bundle / WEIGHTS).unlink()
    seal_again(ir_bundle)
    assert f"{WEIGHTS!r}, which the manifest does not list" in refused(ir_bundle)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_weights_behind_a_link_are_refused(
    ir_bundle: Path, refused: Refused, link: Callable[[Path, Path], None]
) -> None:
    outside = ir_bundle.parent / "outside"
    (ir_bundle / WEIGHTS).rename(outside)
    link(outside, ir_bundle / WEIGHTS)
    assert WEIGHTS in refused(ir_bundle)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ('<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd">]><net>&x;</net>', "document type"),
        ('<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><net>&b;</net>', "document type"),
        ('<!DOCTYPE net SYSTEM "http://example.com/x.dtd"><net/>', "document type"),
        ("<net>&undefined;</net>", "no XML"),
        ('<?xml version="1.0" encoding="utf-16"?><net/>', "encoding"),
        ('<?xml version="1.0" encoding="iso-8859-1"?><net/>', "encoding"),
        ('<net a="1" a="2"/>', "no XML"),
        ("<net><layers></net>", "no XML"),
        ("<net/><net/>", "no XML"),
        ("<cascade/>", "begins with 'cascade'"),
        ("<net><rt_info><__weights_path value='/etc/passwd'/></rt_info></net>", "names a file"),
        ("<net>" + "<a>" * 200 + "</a>" * 200 + "</net>", "deeper"),
        ("", "no XML"),
        ("\x00", "no XML"),
        ("\ufeff<net>\udc80</net>", "no XML"),
    ],
)
def test_a_document_that_is_no_plain_ir_is_refused(
    ir_bundle: Path, refused: Refused, document: str, named: str
) -> None:
    (ir_bundle / IR).write_bytes(document.encode("utf-8", "surrogateescape"))
    seal_again(ir_bundle)
    message = refused(ir_bundle)
    assert IR in message
    assert named in message


def test_an_ir_of_absurd_size_is_not_read(
    ir_bundle: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laco_runtimes.ir_files.MAX_IR_BYTES", 100)
    assert "larger than 100 bytes" in refused(ir_bundle)
