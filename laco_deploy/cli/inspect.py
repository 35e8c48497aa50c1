"""`laco verify` and `laco info`."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from laco_deploy.terminal import say, show
from laco_runtimes.errors import MissingPackageError

if TYPE_CHECKING:
    from laco_runtimes.bundle import Bundle
    from laco_runtimes.selftest import SelfTest


def verify(
    engine: Path,
    /,
    *,
    public_key: Path | None = None,
    run: bool = False,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Check every file of a bundle against its manifest, every graph, and its signature.

    Examples:

    * `laco verify engine/` - files, hashes, graphs
    * `laco verify engine/ --public-key key.pub` - and who signed it (needs the extra `sign`)
    * `laco verify engine/ --run` - and whether the engine answers here as the model did at export

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote.
    public_key
        PEM file of the key that must have signed the bundle; a miss ends with exit code 3.
    run
        Load the engine as well and ask it two stored questions; a miss ends with exit code 3.
    device
        Where it runs then, in the engine's own words.
    json
        Print what was checked as JSON instead.
    """
    from laco_runtimes.bundle import open_bundle

    bundle = open_bundle(engine, public_key=public_key)
    manifest, files = bundle.manifest, bundle.manifest.files
    size = sum(entry.size for entry in files)
    tested = _ask_engine(bundle, device) if run else None
    if json:
        checked = {
            "path": str(engine),
            "format_version": bundle.manifest.format_version,
            "target": bundle.manifest.target,
            "size_bytes": size,
            "files": [entry.path for entry in files],
            "graphs": list(bundle.graphs),
            "signature": bundle.signature,
            "unverified": manifest.unverified,
            "selftest": tested and asdict(tested),
        }
        print(json_module.dumps(checked, indent=2))
        return
    said = {
        "valid": f"the one of {public_key}, over every file",
        "not checked": "there is one; give --public-key to check it",
        "none": "not signed",
    }
    say(
        f"{engine}: {len(files)} files, {size / 1e6:.1f} MB, sizes and SHA-256 all as the manifest "
        "says, no other files"
    )
    say(f"graphs: {len(bundle.graphs)}, all weights inside the files that the manifest lists")
    say(f"signature: {said[bundle.signature]}")
    if manifest.parity is not None:
        say(f"parity at export: {manifest.parity.summary}")
    else:
        say(f"unverified: {manifest.unverified}", style="yellow")
    if tested is not None:
        say(f"asked here: {tested}")


def _ask_engine(bundle: Bundle, device: str) -> SelfTest:
    """Hold the engine against the answers that the bundle carries.

    Raises:
        ParityError: it answers otherwise.
    """
    from laco_runtimes.engines import load_engine
    from laco_runtimes.engines.base import LoadRequest
    from laco_runtimes.errors import ParityError
    from laco_runtimes.selftest import run_selftest

    manifest = bundle.manifest
    engine = load_engine(LoadRequest(bundle.root, manifest, manifest.variants[0], device))
    tested = run_selftest(engine, bundle.root, manifest)
    if not tested.passed:
        raise ParityError(
            f"{manifest.target} on {engine.device} does not answer as the model did at export: "
            f"{tested}. Export the model again on this machine, or use another device."
        )
    return tested


def info(path: Path, /, *, json: bool = False) -> None:
    """Say what a bundle or a checkpoint holds: model, mergers, visual tokens, and more.

    Examples:

    * `laco info engine/` - engine, parity, size
    * `laco info ckpt/` - parameters, operations, theoretical speed-up (needs the extra `train`)

    Parameters
    ----------
    path
        Bundle folder that `laco export` wrote, or checkpoint folder. Of a checkpoint only the
        configuration is read.
    json
        Print everything as JSON instead.
    """
    from laco_runtimes.manifest import MANIFEST_NAME

    is_bundle = (path / MANIFEST_NAME).exists()
    if not is_bundle and (path / "config.json").is_file():
        _checkpoint_info(path, json)
    else:
        _bundle_info(path, json)


def _checkpoint_info(path: Path, json: bool) -> None:
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MissingPackageError(package, "train")

    from laco_deploy.model.checkpoint import read_config
    from laco_deploy.model.facts import model_facts

    facts = model_facts(read_config(path))
    if json:
        print(json_module.dumps(facts.to_json(), indent=2))
    else:
        _print_table(facts.rows())


def _bundle_info(engine: Path, json: bool) -> None:
    from laco_runtimes.bundle import open_bundle
    from laco_runtimes.display import bundle_rows

    manifest = open_bundle(engine).manifest
    if json:
        print(json_module.dumps(manifest.model_dump(mode="json"), indent=2))
        return
    _print_table(bundle_rows(manifest).items())


def _print_table(rows: Iterable[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    show(table)


__all__ = ["info", "verify"]
