"""A published encoder or language model as a user names it: folder, hub id or preset."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig, Qwen2Config

from laco_deploy.model.config import VisionConfig
from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS, Preset, find_preset
from laco_deploy.model.towers import find_published_tower, find_tower
from laco_runtimes.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from laco_runtimes.images import Preprocessing

SMALL_FILES = ("*.json", "*.md", "merges.txt", "LICENSE*")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_LICENCE = re.compile(r"[\w.+-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the two models that make up a checkpoint."""

    name: str
    """As the user gave it."""
    config: PreTrainedConfig
    folder: Path | None = None
    """Where its files are; a preset has none."""
    hub_id: str | None = None
    """Where it is published, if that is known."""
    download: bool = False
    """Whether files may be fetched from the hub."""

    @property
    def blocks(self) -> int:
        """How many blocks or layers it has."""
        return cast(Any, self.config).num_hidden_layers

    @property
    def title(self) -> str:
        """Name for people: the hub id, or the preset, or the folder without its path."""
        if self.hub_id is not None:
            return self.hub_id
        return self.name if self.folder is None else self.folder.resolve().name

    @property
    def licence(self) -> str | None:
        """Id that the model card beside the weights states; None when it states none."""
        card = None if self.folder is None else self.folder / "README.md"
        if card is None or not card.is_file():
            return None
        try:
            stated = str((metadata_load(card) or {}).get("license"))
        except Exception:  # YAML's errors have no base that huggingface_hub names
            return None
        return stated if _LICENCE.fullmatch(stated) and stated != "None" else None

    def published_folder(self) -> Path:
        """Folder that the weights are in, or will be downloaded to.

        Raises:
            CheckpointNotFoundError: a preset, which has none.
        """
        if self.folder is None:
            raise CheckpointNotFoundError(
                f"preset {self.name!r} holds settings, no weights. Give the folder or the id of "
                f"the published ones ({self.hub_id}), or --random-weights to study speed."
            )
        return self.folder

    def fetch_weights(self) -> Path:
        """Folder with the published weights, fetched now where that was allowed.

        Raises:
            CheckpointNotFoundError: a preset, which has none, or a hub that does not give them.
        """
        folder = self.published_folder()
        if self.download and self.hub_id is not None:
            return _snapshot(self.hub_id, WEIGHT_FILES, download=True)
        return folder


def find_vision(name: str, *, blocks: int | None = None, download: bool = False) -> Part:
    """The encoder that a user named.

    Args:
        name: folder, id on the Hugging Face hub, or key of `VISION_PRESETS`. A folder goes first.
        blocks: how many to keep; by default all, or as many as the preset has.
        download: whether an id may be fetched from the hub; else it must be in the local cache.

    Raises:
        ConfigError: an unknown name or kind of encoder, or more blocks than there are.
        CheckpointNotFoundError: an id that is not in the cache, or a folder without `config.json`.
        CheckpointError: a `config.json` that is not valid.
    """
    return _find(name, "vision encoder", VISION_PRESETS, _vision_config, blocks, download)


def find_language_model(name: str, *, download: bool = False) -> Part:
    """The language model that a user named; see `find_vision`.

    Raises:
        ConfigError: an unknown name, or a language model of another kind than Qwen2.
        CheckpointNotFoundError: an id that is not in the cache, or a folder without `config.json`.
        CheckpointError: a `config.json` that is not valid.
    """
    return _find(name, "language model", LANGUAGE_PRESETS, _language_config, None, download)


def read_preprocessing(vision: Part, image_size: int) -> Preprocessing:
    """Mean and std that stand beside the encoder's weights, else those of its kind.

    Raises:
        CheckpointError: a file that states something else than three numbers.
    """
    tower = find_tower(cast(VisionConfig, vision.config).model_type)
    values: dict[str, Any] = {"image_mean": tower.mean, "image_std": tower.std}
    path = None if vision.folder is None else vision.folder / "preprocessor_config.json"
    try:
        if path is not None and path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            values.update((name, stored[name]) for name in values if name in stored)
        (red, green, blue), (std_red, std_green, std_blue) = (
            map(float, values[name]) for name in ("image_mean", "image_std")
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"'{path}' does not state image_mean and image_std as three numbers each. "
            "Copy it from the original checkpoint."
        ) from error
    return Preprocessing(
        image_size=image_size, mean=(red, green, blue), std=(std_red, std_green, std_blue)
    )


def _find(
    name: str,
    what: str,
    presets: Mapping[str, Preset],
    read_config: Callable[[dict[str, Any]], PreTrainedConfig],
    blocks: int | None,
    download: bool,
) -> Part:
    folder, hub_id = Path(name), None
    if not folder.is_dir():
        if "/" not in name or name in presets:
            preset = find_preset(what, name, presets)
            return Part(name=name, config=preset.config(blocks), hub_id=preset.hub_id)
        folder, hub_id = _snapshot(name, SMALL_FILES, download=download), name
    config = _read_config(folder, name, read_config)
    if blocks is not None:
        stored: int = cast(Any, config).num_hidden_layers
        if not 1 <= blocks <= stored:
            raise ConfigError(
                f"{blocks} blocks were asked for, the encoder in '{name}' has {stored}. "
                f"Choose 1 to {stored}."
            )
        cast(Any, config).num_hidden_layers = blocks
    return Part(name=name, config=config, folder=folder, hub_id=hub_id, download=download)


def _snapshot(hub_id: str, files: tuple[str, ...], *, download: bool) -> Path:
    try:
        found = snapshot_download(hub_id, allow_patterns=[*files], local_files_only=not download)
    except HFValidationError as error:
        raise CheckpointNotFoundError(
            f"there is no folder '{hub_id}', and no hub id looks like that. "
            "Give the folder of the published weights."
        ) from error
    except OSError as error:  # not cached, no such id, no access, no network
        hint = "" if download else " Add --download to fetch it from the Hugging Face hub."
        where = "the hub does not give it" if download else "not in the local Hugging Face cache"
        raise CheckpointNotFoundError(
            f"'{hub_id}' is no folder, and {where} ({type(error).__name__}). "
            f"Give the folder of the published weights.{hint}"
        ) from error
    return Path(found)


def _read_config(
    folder: Path, name: str, read_config: Callable[[dict[str, Any]], PreTrainedConfig]
) -> PreTrainedConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointNotFoundError(
            f"'{name}' holds no config.json. Give the folder of the published weights."
        )
    try:
        return read_config(json.loads(path.read_text(encoding="utf-8")))
    except ConfigError:
        raise
    except Exception as error:  # transformers' checks raise many kinds
        raise CheckpointError(
            f"the config.json of '{name}' is not valid: {error}. "
            "Copy it from the original checkpoint."
        ) from error


def _vision_config(values: dict[str, Any]) -> PreTrainedConfig:
    return find_published_tower(str(values.get("model_type"))).read_config(values)


def _language_config(values: dict[str, Any]) -> PreTrainedConfig:
    kind = values.get("model_type")
    if kind != Qwen2Config.model_type:
        raise ConfigError(
            f"the language model is of type {kind!r}. It must be a {Qwen2Config.model_type!r}, "
            "such as Qwen2.5."
        )
    # auto_map names code to run, dtype how the file stores weights.
    drop = {"auto_map", "torch_dtype", "dtype"}
    return Qwen2Config.from_dict({key: value for key, value in values.items() if key not in drop})


__all__ = ["Part", "find_language_model", "find_vision", "read_preprocessing"]
