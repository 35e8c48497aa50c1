"""A signature says whose bundle it is, and that nothing in it changed since."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

from laco_runtimes.bundle import open_bundle, seal_bundle, sign_bundle
from laco_runtimes.errors import (
    ArgumentError,
    BundleError,
    MissingPackageError,
    SignatureError,
)
from laco_runtimes.manifest import MANIFEST_NAME, BundleFacts
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.signing import SIGNATURE_NAME
from tests.runtime.fakes import FakeEngine

hashing = pytest.importorskip("model_signing.hashing", exc_type=ImportError)
signing = pytest.importorskip("model_signing.signing", exc_type=ImportError)

from tests.runtime.keys import write_encrypted_keys, write_keys, write_rsa_keys  # noqa: E402


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "key")


@pytest.fixture
def signed(bundle: Path, keys: tuple[Path, Path]) -> Path:
    sign_bundle(bundle, keys[0])
    return bundle


def test_a_signed_bundle_opens_with_its_key_and_without(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    assert open_bundle(signed, public_key=keys[1]).signature == "valid"
    assert open_bundle(signed).signature == "not checked"


def test_an_unsigned_bundle_is_refused_where_a_signature_is_asked_for(
    bundle: Path, keys: tuple[Path, Path]
) -> None:
    assert open_bundle(bundle).signature == "none"
    with pytest.raises(SignatureError, match="is not signed") as error:
        open_bundle(bundle, public_key=keys[1])
    assert error.value.exit_code == 3


def test_the_signature_of_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(SignatureError, match=r"does not hold.*Key mismatch"):
        open_bundle(signed, public_key=other)


def test_a_bundle_changed_and_sealed_again_is_refused(
    signed: Path, facts: BundleFacts, keys: tuple[Path, Path]
) -> None:
    signature = (signed / SIGNATURE_NAME).read_bytes()
    (signed / SIGNATURE_NAME).unlink()
    (signed / MANIFEST_NAME).unlink()
    (signed / "config.json").write_text("{}")
    seal_bundle(signed, facts)
    (signed / SIGNATURE_NAME).write_bytes(signature)
    assert open_bundle(signed).signature == "not checked"
    with pytest.raises(SignatureError, match=r"Hash mismatch for 'config\.json'"):
        open_bundle(signed, public_key=keys[1])


@pytest.mark.parametrize("name", ["config.json", "onnx/decoder.onnx", MANIFEST_NAME])
def test_a_changed_file_is_refused(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    with (signed / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(SignatureError, match=name):
        open_bundle(signed, public_key=keys[1])


def test_a_damaged_signature_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / SIGNATURE_NAME
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            open_bundle(signed, public_key=keys[1])
        except SignatureError:
            continue
        # Only what means nothing may change: a letter of a name, a blank.
        path.write_bytes(whole)
        assert open_bundle(signed, public_key=keys[1]).signature == "valid"
    for spoiled in (b"", b"{}", b"[]", b"\xff\xfe", whole[: len(whole) // 2]):
        path.write_bytes(spoiled)
        with pytest.raises(SignatureError, match="does not hold"):
            open_bundle(signed, public_key=keys[1])


def test_a_signature_that_leaves_files_out_is_refused(
    bundle: Path, keys: tuple[Path, Path]
) -> None:
    """The package lets a signature name files to ignore; ours must cover all."""
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(
        hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME, "onnx", MANIFEST_NAME])
    )
    config.sign(bundle, bundle / SIGNATURE_NAME)
    with pytest.raises(SignatureError, match=r"does not cover 'laco\.json'"):
        open_bundle(bundle, public_key=keys[1])


def test_a_signature_over_other_files_is_refused(
    bundle: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("a")
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.sign(tmp_path / "other", bundle / SIGNATURE_NAME)
    with pytest.raises(SignatureError, match="does not hold"):
        open_bundle(bundle, public_key=keys[1])


def test_a_forged_payload_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / SIGNATURE_NAME
    data = json.loads(path.read_bytes())
    payload = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"] = []
    data["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    path.write_text(json.dumps(data))
    with pytest.raises(SignatureError, match="made with another key"):
        open_bundle(signed, public_key=keys[1])


def test_a_signed_bundle_may_be_renamed(signed: Path, keys: tuple[Path, Path]) -> None:
    signed.rename(signed.with_name("renamed"))
    assert open_bundle(signed.with_name("renamed"), public_key=keys[1]).signature == "valid"


def test_signing_again_replaces_the_signature(signed: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "other")
    sign_bundle(signed, private)
    assert open_bundle(signed, public_key=public).signature == "valid"


def test_the_packages_own_command_accepts_the_signature(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    from model_signing import verifying

    config = verifying.Config().use_elliptic_key_verifier(public_key=keys[1])
    config.verify(signed, signed / SIGNATURE_NAME)


def test_a_damaged_bundle_is_not_signed(bundle: Path, keys: tuple[Path, Path]) -> None:
    (bundle / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="not the one that was exported"):
        sign_bundle(bundle, keys[0])
    assert not (bundle / SIGNATURE_NAME).exists()


def test_a_key_that_cannot_be_used_is_an_argument_error(signed: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no key")
    rsa_keys = write_rsa_keys(tmp_path, "rsa")
    private, public = write_encrypted_keys(tmp_path, "locked")
    for key in (text, rsa_keys[0], private, public, tmp_path / "none.pem"):
        with pytest.raises(ArgumentError, match="openssl ecparam"):
            sign_bundle(signed, key)
    for key in (text, rsa_keys[1], private, tmp_path / "none.pub", tmp_path):
        with pytest.raises(ArgumentError, match="openssl ecparam"):
            open_bundle(signed, public_key=key)


@pytest.mark.parametrize("lacking", ["model_signing", "OpenSSL"])
def test_a_missing_package_says_how_to_install_it(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == lacking]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, lacking, None)
    with pytest.raises(MissingPackageError, match=r"pip install 'laco-deploy\[sign\]'"):
        open_bundle(signed, public_key=keys[1])
    assert open_bundle(signed).signature == "not checked"


def test_a_pipeline_checks_the_signature_before_an_engine_is_loaded(
    bundle: Path, keys: tuple[Path, Path], fake: FakeEngine
) -> None:
    with pytest.raises(SignatureError, match="is not signed"):
        Pipeline(bundle, public_key=keys[1])
    sign_bundle(bundle, keys[0])
    pipeline = Pipeline(bundle, public_key=keys[1])
    assert pipeline.bundle.signature == "valid"
