"""What a pipeline can be opened on: a bundle, or a checkpoint folder that PyTorch runs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from laco_runtimes.bundle import Bundle, open_bundle
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import Floats, LoadedEngine, LoadRequest
from laco_runtimes.errors import ArgumentError, EngineError, MissingPackageError
from laco_runtimes.manifest import MAIN_VARIANT, MANIFEST_NAME, BundleFacts, Variant
from laco_runtimes.newline import read_newline

TORCH_ENGINE = "laco_deploy.torch_engine"
"""Module of the floor above that runs checkpoints; imported by its name, and only for one."""
TORCH_EXTRA = "torch"
TORCH_PACKAGES = ("torch", "transformers", "safetensors", "huggingface_hub")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRequest:
    """What is asked for; see `open_source`."""

    root: Path
    device: str
    variant: str
    threads: int | None
    public_key: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that is loaded, with all that stands around it."""

    facts: BundleFacts
    tokenizer: Path
    """`tokenizer.json`."""
    variant: Variant
    engine: LoadedEngine
    newline: Floats | None
    """[D], `image_newline` of the model; None where it has none."""
    unverified: str | None
    """Why answers may differ from the model's; None where they were compared, or are the model's
    own."""
    bundle: Bundle | None = None
    """None where it is a checkpoint."""


@dataclass(frozen=True, slots=True)
class SourceKind:
    """One row of the table of what a folder may be."""

    is_here: Callable[[Path], bool]
    open: Callable[[SourceRequest], Source]


def open_source(
    path: str | os.PathLike[str],
    device: str = "auto",
    variant: str = MAIN_VARIANT,
    threads: int | None = None,
    public_key: str | os.PathLike[str] | None = None,
) -> Source:
    """Load a bundle with the engine it was exported for, or a checkpoint with PyTorch.

    Args:
        path: folder of a bundle (`laco.json`) or of a checkpoint (`config.json` and weights).
        device: `auto`, or a device in the engine's own words; an explicit one never falls back.
        variant: vision encoder to use.
        threads: CPU threads per inference; None leaves it to the engine.
        public_key: PEM file of the key that must have signed the bundle; None asks for none.

    Raises:
        LacoError: all that `open_bundle` and `load_engine` raise.
        CheckpointError: a checkpoint that cannot be read.
        ArgumentError: an unknown variant, or a key for a checkpoint.
        MissingPackageError: the engine is not installed, or PyTorch for a checkpoint.
        EngineError: the engine refused the device or a graph.
    """
    request = SourceRequest(
        root=Path(path),
        device=device,
        variant=variant,
        threads=threads,
        public_key=None if public_key is None else Path(public_key),
    )
    kind = next((kind for kind in KINDS.values() if kind.is_here(request.root)), KINDS["bundle"])
    return kind.open(request)


def _open_bundle(request: SourceRequest) -> Source:
    bundle = open_bundle(request.root, public_key=request.public_key)
    facts, variant = bundle.manifest, bundle.variant(request.variant)
    newline = read_newline(bundle.root, facts)
    engine = load_engine(LoadRequest(bundle.root, facts, variant, request.device, request.threads))
    return Source(
        facts=facts,
        tokenizer=bundle.tokenizer,
        variant=variant,
        engine=engine,
        newline=newline,
        unverified=facts.unverified,
        bundle=bundle,
    )


def _open_checkpoint(request: SourceRequest) -> Source:
    if request.public_key is not None:
        raise ArgumentError(
            f"'{request.root}' is a checkpoint, and only bundles are signed. Leave the key out, or "
            "export the checkpoint."
        )
    try:
        module = importlib.import_module(TORCH_ENGINE)
    except ImportError as error:
        package = (error.name or "torch").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in TORCH_PACKAGES:
            raise MissingPackageError(package, TORCH_EXTRA) from None
        raise EngineError(
            f"PyTorch is installed but does not start: {error}. Install it again."
        ) from error
    return cast(Callable[[SourceRequest], Source], module.open_checkpoint_source)(request)


def _is_bundle(root: Path) -> bool:
    return os.path.lexists(root / MANIFEST_NAME)


def _is_checkpoint(root: Path) -> bool:
    # A bundle carries config.json as well, so that alone does not tell; its weights do.
    return (root / "config.json").is_file() and any(root.glob("*.safetensors*"))


KINDS: dict[str, SourceKind] = {
    "bundle": SourceKind(_is_bundle, _open_bundle),
    "checkpoint": SourceKind(_is_checkpoint, _open_checkpoint),
}
"""What a folder may be, in the order in which it is tried."""

__all__ = ["KINDS", "Source", "SourceKind", "SourceRequest", "open_source"]
