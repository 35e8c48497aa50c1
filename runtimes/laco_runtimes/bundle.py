"""A bundle folder: verified before anything in it is loaded, sealed last, replaced in one step."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError

from laco_runtimes.display import bundle_html
from laco_runtimes.errors import ArgumentError, BundleError, BundleNotFoundError
from laco_runtimes.ir_files import check_ir
from laco_runtimes.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    OLDEST_FORMAT,
    TOKENIZER_NAME,
    BundleFacts,
    FileEntry,
    Manifest,
    Variant,
)
from laco_runtimes.names import check_names
from laco_runtimes.onnx_files import check_onnx
from laco_runtimes.replace import check_replaceable, replace_folder, sync_folder, write_atomic
from laco_runtimes.signing import SIGNATURE_NAME, check_signature, make_signature

MAX_MANIFEST_BYTES = 16_000_000
HASHED_AT_ONCE = 4
"""Files; more would only compete for the disk."""

GRAPH_CHECKS: dict[str, Callable[[Path, str, Mapping[str, int]], None]] = {
    ".onnx": check_onnx,
    ".xml": check_ir,
}
"""What holds a graph against the files around it, by the suffix of the graph's file."""

SignatureState = Literal["valid", "not checked", "none"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: every file is the one that was sealed."""

    root: Path
    manifest: Manifest
    graphs: tuple[str, ...] = ()
    """Graphs whose weights were found to be inside their files."""
    signature: SignatureState = "none"

    @property
    def tokenizer(self) -> Path:
        """Path of `tokenizer.json`."""
        return self.root / TOKENIZER_NAME

    def _repr_html_(self) -> str:
        """For a notebook."""
        return bundle_html(self)

    def variant(self, name: str) -> Variant:
        """One vision encoder of the bundle by name.

        Raises:
            ArgumentError: the bundle has no variant of that name.
        """
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.manifest.variants)
        raise ArgumentError(
            f"the bundle has no variant {name!r}. It holds: {known}; "
            "baselines are added with `laco export --baseline`."
        )


def open_bundle(
    path: str | os.PathLike[str], *, public_key: str | os.PathLike[str] | None = None
) -> Bundle:
    """Read the manifest and check every file against it: kind, size and SHA-256, and every graph.

    Args:
        path: the bundle folder.
        public_key: PEM file of the key that must have signed the bundle; None asks for no
            signature.

    Raises:
        BundleNotFoundError: nothing at `path`, or no manifest in it.
        BundleError: a manifest that is damaged or of another format version; a file that is
            missing, extra, changed, a link, no regular file, or code; a graph with weights outside
            the files that the manifest lists.
        SignatureError: `public_key` is given and the bundle is not signed, or not by that key, or
            has changed since.
        ArgumentError: `public_key` is no key.
        MissingPackageError: the package that checks signatures is not installed.
    """
    root = Path(path).resolve()
    manifest = read_manifest(root)
    found = dict(_walk(root))
    found.pop(MANIFEST_NAME)
    signed = found.pop(SIGNATURE_NAME, None) is not None
    listed = {entry.path: entry for entry in manifest.files}
    if missing := sorted(listed.keys() - found.keys()):
        raise BundleError(f"'{root}' has lost its file {missing[0]!r}. Copy or export it again.")
    if extra := sorted(found.keys() - listed.keys()):
        raise BundleError(
            f"'{root}' holds {extra[0]!r}, which its manifest does not list. Remove that file."
        )
    if public_key is not None:
        check_signature(root, {*listed, MANIFEST_NAME}, Path(public_key))
    _check_files(root, manifest.files, found)
    state: SignatureState = "not checked" if signed else "none"
    return Bundle(
        root, manifest, _check_graphs(root, manifest), "valid" if public_key is not None else state
    )


def sign_bundle(path: str | os.PathLike[str], private_key: str | os.PathLike[str]) -> Path:
    """Verify a bundle and write `laco.sig` into it; an older signature is replaced.

    Args:
        path: the bundle folder.
        private_key: PEM file with a key of curve P-256, P-384 or P-521, not encrypted.

    Raises:
        LacoError: all that `open_bundle` raises.
        ArgumentError: a key that cannot be read or used.
        MissingPackageError: the package that signs is not installed.
    """
    root = open_bundle(path).root
    write_atomic(root / SIGNATURE_NAME, make_signature(root, Path(private_key)))
    return root / SIGNATURE_NAME


def seal_bundle(folder: Path, facts: BundleFacts) -> Manifest:
    """List and hash every file of a finished folder, then write `laco.json`, last and in one step.

    All files are on the disk (fsync) when this returns, so a later rename cannot outrun them.

    Raises:
        BundleError: a link or special file in the folder, a file name outside `RelativePath`, or
            a graph that the facts name and the folder lacks.
    """
    entries = []
    for name, path in sorted(_walk(folder)):
        if name in (MANIFEST_NAME, SIGNATURE_NAME):
            raise BundleError(f"'{folder}' is sealed already. Export into an empty folder.")
        with path.open("rb+") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        entries.append({"path": name, "size": path.stat().st_size, "sha256": _sha256(path)})
    manifest = _validated({**facts.model_dump(), "files": entries}, folder)
    check_names([entry.path for entry in manifest.files], folder)
    write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2).encode() + b"\n")
    for parent in {path.parent for _, path in _walk(folder)}:
        sync_folder(parent)
    return manifest


def read_manifest(root: Path) -> Manifest:
    """The manifest of a bundle folder; nothing else in the folder is looked at.

    Raises:
        BundleNotFoundError: nothing at `root`, or no manifest in it.
        BundleError: a manifest that is damaged, of another format version, or lists what no bundle
            holds.
    """
    path = root / MANIFEST_NAME
    if not os.path.lexists(path):
        what = "holds no bundle (no laco.json)" if root.exists() else "does not exist"
        raise BundleNotFoundError(
            f"'{root}' {what}. Make one with: laco export --ckpt ckpt/ --out '{root}'"
        )
    if _regular_size(path, MANIFEST_NAME) > MAX_MANIFEST_BYTES:
        raise BundleError(f"'{path}' is too large for a manifest. Export the model again.")
    return parse_manifest(path.read_bytes(), root)


def parse_manifest(text: bytes, root: Path) -> Manifest:
    """A manifest from its bytes; `root` is for messages.

    Raises:
        BundleError: as `read_manifest`.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"the manifest of '{root}' is damaged: {error}. Copy or export the bundle again."
        ) from None
    version = data.get("format_version") if isinstance(data, dict) else None
    reads = f"this version reads {OLDEST_FORMAT} to {FORMAT_VERSION}"
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleError(
            f"'{root}' was made by a newer version of laco-deploy: its format is {version}, and "
            f"{reads}. Upgrade laco-deploy, or export the model again."
        )
    if type(version) is int and 0 < version < OLDEST_FORMAT:
        raise BundleError(
            f"'{root}' was made by an older version of laco-deploy: its format is {version}, and "
            f"{reads}. Export the model again."
        )
    manifest = _validated(data, root)
    check_names([entry.path for entry in manifest.files], root)
    return manifest


def _check_files(root: Path, entries: Sequence[FileEntry], found: Mapping[str, Path]) -> None:
    """Check the size of every file, then its SHA-256; files side by side, as hashing is the longest
    part of opening a bundle of gigabytes and leaves the interpreter free."""

    changed = {one.path for one in entries if found[one.path].stat().st_size != one.size}
    if not changed:
        largest_first = sorted(entries, key=lambda one: one.size, reverse=True)
        with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
            hashes = pool.map(lambda one: _sha256(found[one.path]), largest_first)
            pairs = zip(largest_first, hashes, strict=True)
            changed = {one.path for one, digest in pairs if digest != one.sha256}
    if changed:
        raise BundleError(
            f"file {min(changed)!r} of '{root}' is not the one that was exported. "
            "Copy or export the bundle again."
        )


def _check_graphs(root: Path, manifest: Manifest) -> tuple[str, ...]:
    """Check every graph in the list of files, whether an engine loads it or not."""
    named = (
        manifest.embed_tokens,
        manifest.decoder,
        *(v.vision_encoder for v in manifest.variants),
    )
    for name in named:
        if PurePosixPath(name).suffix not in GRAPH_CHECKS:
            raise BundleError(
                f"the manifest of '{root}' names {name!r} as a graph, and it is none: a graph is "
                f"one of {', '.join(GRAPH_CHECKS)}. Export the model again."
            )
    sizes = {entry.path: entry.size for entry in manifest.files}
    graphs = [name for name in sizes if PurePosixPath(name).suffix.lower() in GRAPH_CHECKS]
    for name in graphs:
        GRAPH_CHECKS[PurePosixPath(name).suffix.lower()](root / name, name, sizes)
    return tuple(graphs)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; of two equal keys, readers differ in which they take."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _validated(data: object, root: Path) -> Manifest:
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"key {key!r}: " if key else ""
        raise BundleError(
            f"the manifest of '{root}' is not valid: {where}{first['msg']}. Export the model again."
        ) from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every file below `root`; all but folders and plain files is an error."""
    folders = [root]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            name = path.relative_to(root).as_posix()
            if stat.S_ISDIR(path.lstat().st_mode):
                folders.append(path)
            else:
                _regular_size(path, name)
                yield name, path


def _regular_size(path: Path, name: str) -> int:
    """Size of a file with one name; through a second one, its contents could change unseen."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(
            f"{name!r} in '{path.parent}' is a link or no file. Copy the bundle whole."
        )
    if status.st_nlink != 1:
        raise BundleError(
            f"{name!r} in '{path.parent}' is hard-linked from elsewhere. Copy the bundle whole."
        )
    return status.st_size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "Bundle",
    "check_replaceable",
    "open_bundle",
    "parse_manifest",
    "read_manifest",
    "replace_folder",
    "seal_bundle",
    "sign_bundle",
    "write_atomic",
]
