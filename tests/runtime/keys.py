"""Pairs of keys for signatures."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

NO_PASSWORD = serialization.NoEncryption()


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A new pair for curve P-256 in PEM: the private one, the public one."""
    return write_pair(folder, name, ec.generate_private_key(ec.SECP256R1()), NO_PASSWORD)


def write_rsa_keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return write_pair(folder, name, key, NO_PASSWORD)


def write_encrypted_keys(folder: Path, name: str) -> tuple[Path, Path]:
    locked = serialization.BestAvailableEncryption(b"secret")
    return write_pair(folder, name, ec.generate_private_key(ec.SECP256R1()), locked)


def write_pair(
    folder: Path,
    name: str,
    key: PrivateKeyTypes,
    encryption: serialization.KeySerializationEncryption,
) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public
