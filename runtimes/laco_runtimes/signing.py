"""An optional signature over every file of a bundle, by OpenSSF's `model-signing`.

It is made and checked offline with a key of an elliptic curve; `model_signing verify key` from the
package's own command line checks it as well.
"""

from __future__ import annotations

import base64
import importlib
import json
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laco_runtimes.errors import ArgumentError, MissingPackageError, SignatureError

SIGNATURE_NAME = "laco.sig"
"""The only file that may stand in a bundle without being listed: it signs the list."""
MAX_SIGNATURE_BYTES = 16_000_000

MAKE_KEYS = (
    "Make a pair: openssl ecparam -name prime256v1 -genkey -noout -out key.pem, "
    "then openssl ec -in key.pem -pubout -out key.pub"
)


def make_signature(root: Path, private_key: Path) -> bytes:
    """Contents of `laco.sig` for the files in `root` as they are.

    Args:
        root: a verified bundle.
        private_key: PEM file with a key of curve P-256, P-384 or P-521, not encrypted.

    Raises:
        ArgumentError: a key that cannot be read or used.
        MissingPackageError: model-signing, or what it needs, is not installed.
    """
    signing = _package("signing")
    with _readable(private_key, "private"):
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(_hashing())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SIGNATURE_NAME
        config.sign(root, path)
        return path.read_bytes()


def check_signature(root: Path, names: Collection[str], public_key: Path) -> None:
    """Check `laco.sig` against the files in `root`.

    Args:
        root: the bundle folder.
        names: every file that the signature must cover, by path in the bundle.
        public_key: PEM file of the key that is trusted.

    Raises:
        SignatureError: no signature, one made with another key, or one over other files.
        ArgumentError: a key that cannot be read or used.
        MissingPackageError: model-signing, or what it needs, is not installed.
    """
    path = root / SIGNATURE_NAME
    if not path.is_file():
        raise SignatureError(
            f"'{root}' is not signed. Ask its author for a signed one, or sign it yourself: "
            f"laco sign '{root}' --private-key key.pem"
        )
    if path.stat().st_size > MAX_SIGNATURE_BYTES:
        raise SignatureError(f"'{path}' is too large for a signature. Sign the bundle again.")
    verifying = _package("verifying")
    with _readable(public_key, "public"):
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    config.set_hashing_config(_hashing())
    try:
        config.verify(root, path)
        signed = _signed_names(path)
    except Exception as error:  # the package has no root of its own, and reads hostile JSON
        reason = " ".join(str(error).split())[:300].rstrip(". ") or "made with another key"
        raise SignatureError(
            f"the signature of '{root}' does not hold with '{public_key}': {reason}. "
            "Do not use the bundle, or check which key its author gave."
        ) from error
    if missing := sorted(set(names) - signed):  # a signature may say what it leaves out
        raise SignatureError(
            f"the signature of '{root}' does not cover {missing[0]!r}. Do not use the bundle."
        )


def _signed_names(path: Path) -> set[str]:
    """Files that a signature covers. Call it when the signature was found good."""
    envelope = json.loads(path.read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    return {resource["name"] for resource in statement["predicate"]["resources"]}


def _hashing() -> Any:
    config = _package("hashing").Config().use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)


def _package(module: str) -> Any:
    """A module of model-signing, whose classes carry no types."""
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:  # its own dependency OpenSSL may be what lacks
        raise MissingPackageError(error.name or "model_signing", "sign") from error


@contextmanager
def _readable(key: Path, kind: str) -> Iterator[None]:
    if not key.is_file():
        raise ArgumentError(f"there is no {kind} key '{key}'. {MAKE_KEYS}")
    try:
        yield
    except Exception as error:  # cryptography raises many kinds, and so does a key of RSA
        raise ArgumentError(
            f"'{key}' is no {kind} key of an elliptic curve in PEM, or is encrypted. {MAKE_KEYS}"
        ) from error


__all__ = ["SIGNATURE_NAME", "check_signature", "make_signature"]
