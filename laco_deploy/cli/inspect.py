"""`laco verify` and `laco info`."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from laco_deploy.terminal import say
from laco_runtimes.errors import MissingPackageError


def verify(engine: Path, /) -> None:
    """Check every file of a bundle against its manifest.

    Example: `laco verify engine/`

    Parameters
    ----------
    engine
        Bundle folder that `laco export` wrote.
    """
    from laco_runtimes.bundle import open_bundle

    bundle = open_bundle(engine)
    size = sum(entry.size for entry in bundle.manifest.files)
    say(
        f"{engine}: {len(bundle.manifest.files)} files, {size / 1e6:.1f} MB, "
        "all as the manifest says"
    )


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

    manifest = open_bundle(engine).manifest
    if json:
        print(json_module.dumps(manifest.model_dump(mode="json"), indent=2))
        return
    vision, language, parity = manifest.vision, manifest.language, manifest.parity
    side = vision.image_size // vision.patch_size
    rows = {
        "engine": f"{manifest.target}, "
        + ", ".join(f"{name} {value}" for name, value in manifest.precision.items()),
        "vision encoder": f"{vision.model_type}, {vision.blocks} blocks x {vision.width}, "
        f"{vision.image_size} px, {side}x{side} patches of {vision.patch_size} px",
        "language model": f"{language.model_type}, {language.layers} layers x "
        f"{language.hidden_size}, {language.vocab_size} tokens, context {language.max_positions}",
        **{
            f"variant {variant.name}": (
                f"{variant.tokens_per_tile} visual tokens per image"
                + "".join(
                    f", {m.kind} {m.ratio}x{m.ratio} after block {m.after_block}"
                    for m in variant.mergers
                )
                + (" (for latency only)" if variant.latency_only else "")
            )
            for variant in manifest.variants
        },
        "parity with PyTorch": f"{parity.greedy_identical} of {parity.images} answers identical, "
        f"cosine of a visual token at least {parity.visual_token_cosine_min:.6f}, "
        f"logits differ by at most {parity.logits_max_abs_difference:.1e}",
        "made by": manifest.created_by
        + ", "
        + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "size": f"{sum(entry.size for entry in manifest.files) / 1e6:.1f} MB "
        f"in {len(manifest.files)} files",
    }
    _print_table(rows.items())


def _print_table(rows: Iterable[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console(highlight=False).print(table)


__all__ = ["info", "verify"]
