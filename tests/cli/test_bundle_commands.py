"""`laco verify`, `sign`, `pack` and `unpack` on a real bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from laco_deploy.cli import run
from tests.bundles import RandomBundles


def laco(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


@pytest.fixture
def bundle(bundle_for: RandomBundles, tmp_path: Path) -> Path:
    shutil.copytree(bundle_for("onnxruntime"), tmp_path / "engine")
    return tmp_path / "engine"


def test_verify_says_what_was_checked(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert laco("verify", bundle) == 0
    text = capsys.readouterr().out
    assert "SHA-256" in text
    assert "graphs: 6" in text  # four encoders: LaCo's and those of the baselines
    assert "signature: not signed" in text


def test_verify_as_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert laco("verify", bundle, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == "onnxruntime"
    assert "onnx/decoder.onnx.data" in found["files"]
    assert "onnx/decoder_contrib.onnx" in found["graphs"]
    assert found["signature"] == "none"


def test_a_signature_is_made_and_checked(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("model_signing.signing")
    from tests.runtime.keys import write_keys

    private, public = write_keys(tmp_path, "key")
    _, other = write_keys(tmp_path, "other")
    assert laco("verify", bundle, "--public-key", public) == 3
    assert "is not signed" in capsys.readouterr().err
    assert laco("sign", bundle, "--private-key", private) == 0
    capsys.readouterr()
    assert laco("verify", bundle) == 0
    assert "there is one; give --public-key" in capsys.readouterr().out
    assert laco("verify", bundle, "--public-key", public, "--json") == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "valid"
    assert laco("verify", bundle, "--public-key", other) == 3
    assert "does not hold" in capsys.readouterr().err
    assert laco("verify", bundle, "--public-key", tmp_path / "none.pub") == 2


def test_a_bundle_goes_through_an_archive(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, out = tmp_path / "engine.tar", tmp_path / "copy"
    assert laco("pack", bundle, archive) == 0
    assert laco("unpack", archive, out) == 0
    assert "MB" in capsys.readouterr().out
    assert laco("verify", out) == 0
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert laco("unpack", archive, tmp_path / "bad") == 1
    assert "cut off" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("verb", ["sign", "pack", "unpack"])
def test_help_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert laco(verb, "--help") == 0
    assert f"laco {verb} " in capsys.readouterr().out
