"""A published checkpoint, in a folder or in the cache of the Hugging Face hub: find and read files.

Reads `config.json` and safetensors, nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from laco_runtimes.errors import CheckpointError, CheckpointNotFoundError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}  # names of the safetensors format


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the header of a file says of a tensor."""

    path: Path
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PublishedFolder:
    """The settings of a checkpoint, and where its tensors are."""

    source: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def read(self, keys: Collection[str]) -> dict[str, Tensor]:
        """Tensors by their published names, as views of the files (memory map)."""
        read: dict[str, Tensor] = {}
        for path in sorted({self.tensors[key].path for key in keys}):
            with safe_open(path, framework="pt") as file:
                here = (key for key in keys if self.tensors[key].path == path)
                read.update((key, file.get_tensor(key)) for key in here)
        return read


def open_published(
    source: str | os.PathLike[str], *, local_files_only: bool = True, revision: str | None = None
) -> PublishedFolder:
    """Read the settings and the headers of the weights of a folder or hub id.

    Raises:
        CheckpointNotFoundError: no such folder or id, or no `config.json` or safetensors in it.
        CheckpointError: files that are damaged, or weights that are not floating point.
    """
    name = os.fspath(source)
    find = _finder(name, local_files_only, revision)
    config = find("config.json")
    if config is None:
        raise CheckpointNotFoundError(
            f"'{name}' is neither a folder with a config.json nor a checkpoint in the local "
            "Hugging Face cache. Give the folder of the published weights."
        )
    settings = _read_json(config)
    tensors: dict[str, StoredTensor] = {}
    for path in _weight_files(name, find):
        tensors.update(_read_header(path))
    return PublishedFolder(name, settings, tensors)


def _finder(
    name: str, local_files_only: bool, revision: str | None
) -> Callable[[str], Path | None]:
    if Path(name).is_dir():

        def find_local(file: str) -> Path | None:
            path = Path(name) / file
            return path if path.is_file() else None

        return find_local

    def find_on_hub(file: str) -> Path | None:
        try:
            path = hf_hub_download(name, file, revision=revision, local_files_only=local_files_only)
        except EntryNotFoundError:  # also: not in the cache, and the network is not to be used
            return None
        except (OSError, ValueError) as error:  # no such id, no access, no network, no valid name
            raise CheckpointNotFoundError(
                f"'{name}' is no folder, and the Hugging Face hub does not give it "
                f"({type(error).__name__}). Give the folder of the published weights."
            ) from error
        return Path(path)

    return find_on_hub


def _weight_files(name: str, find: Callable[[str], Path | None]) -> list[Path]:
    single = find(WEIGHTS)
    if single is not None:
        return [single]
    index = find(INDEX)
    if index is None:
        raise CheckpointNotFoundError(
            f"'{name}' holds no {WEIGHTS} and no {INDEX}. "
            "Other formats (.bin, .pth) are not read: convert the weights to safetensors."
        )
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"'{index}' names no files. Copy it from the original checkpoint.")
    shards = []
    for file in sorted(set(map(str, files.values()))):
        # A plain name: an index must not lead out of its folder.
        path = find(file) if Path(file).name == file else None
        if path is None:
            raise CheckpointError(
                f"'{index}' names '{file}', which is not beside it. Copy the missing file."
            )
        shards.append(path)
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"'{path}' is not JSON. Copy it from the original checkpoint."
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"'{path}' holds no settings. Copy it from the original checkpoint.")
    return values


def _read_header(path: Path) -> dict[str, StoredTensor]:
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                stored = file.get_slice(key)
                if stored.get_dtype() not in _FLOATS:
                    raise CheckpointError(
                        f"{key} in '{path}' is {stored.get_dtype()}, so the weights are quantised "
                        "or not weights. Give the original ones."
                    )
                tensors[key] = StoredTensor(path, tuple(stored.get_shape()))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read ({error}). The file may be damaged: copy it again."
        ) from error
    return tensors


__all__ = ["PublishedFolder", "StoredTensor", "open_published"]
