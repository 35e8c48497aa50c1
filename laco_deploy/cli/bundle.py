"""`laco sign`, `laco pack` and `laco unpack`: a bundle on its way to another machine."""

from __future__ import annotations

from pathlib import Path

from laco_deploy.terminal import say


def sign(engine: Path, /, *, private_key: Path) -> None:
    """Sign every file of a bundle, so that others can tell that it is yours and as you made it.

    Needs the extra `sign`. Example: `laco sign engine/ --private-key key.pem`

    Make a pair of keys with
    `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` and
    `openssl ec -in key.pem -pubout -out key.pub`, and give `key.pub` to those who verify.

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote.
    private_key
        PEM file with a key of curve P-256, P-384 or P-521, not encrypted.
    """
    from laco_runtimes.bundle import sign_bundle

    path = sign_bundle(engine, private_key)
    say(f"{path}: check it with: laco verify {engine} --public-key key.pub")


def pack(engine: Path, archive: Path, /) -> None:
    """Write a bundle as one file, an uncompressed tar. The same bundle gives the same bytes.

    Example: `laco pack engine/ engine.tar`

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote; it is verified first.
    archive
        File to write. An older file there is replaced when the new one is complete.
    """
    from laco_runtimes.archive import pack_bundle

    path = pack_bundle(engine, archive)
    say(f"{archive}: {path.stat().st_size / 1e6:.1f} MB")


def unpack(archive: Path, engine: Path, /) -> None:
    """Take a bundle out of a file that `laco pack` wrote, and verify it.

    Example: `laco unpack engine.tar engine/`

    Parameters
    ----------
    archive
        The file. Anything in it but what its manifest lists is refused.
    engine
        Bundle folder to write. An older bundle there is replaced when the new one is verified.
    """
    from laco_runtimes.archive import unpack_bundle

    bundle = unpack_bundle(archive, engine)
    say(f"{engine}: {len(bundle.manifest.files)} files, all as the manifest says")


__all__ = ["pack", "sign", "unpack"]
