"""Published weights of an encoder or a language model: check every name and shape, then load.

Only `config.json` and safetensors are read; nothing is unpickled and no code in the folder is run.
The check works on the headers of the files against a model without memory (meta device), so that
a wrong folder costs no time.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from laco_deploy.model.checkpoint import quiet_transformers
from laco_deploy.model.published import PublishedFolder, StoredTensor, open_published
from laco_deploy.model.towers import TowerType, find_published_tower
from laco_deploy.model.towers.keys import KeyLayout
from laco_runtimes.errors import CheckpointError, ConfigError

Source = str | os.PathLike[str]

_NAMES_SHOWN = 5
# Settings that may differ from the folder's: they change no output of the weights that are kept.
_FREE_SETTING = re.compile(r"num_hidden_layers|init|dropout|use_cache|_token_id|max_window_layers")


@dataclass(frozen=True, slots=True)
class CheckedWeights:
    """Weights whose names and shapes fit a configuration.

    The tensors are views of the files on disk where possible, so this takes little memory.
    """

    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    """By the names of the transformers module."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the tensor of one name comes from: part `index` of `count` of a stored tensor."""

    key: str
    shape: tuple[int, ...]
    index: int = 0
    count: int = 1
    squeeze: bool = False


def load_tower(
    source: Source,
    config: PreTrainedConfig | None = None,
    *,
    blocks: int | None = None,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = True,
    revision: str | None = None,
) -> nn.Module:
    """Load a published vision encoder, in evaluation mode.

    Args:
        source: folder, or id on the Hugging Face hub.
        config: what the encoder must be; by default the folder's own `config.json` says it.
        blocks: how many blocks to keep, counted from the first; by default those of `config`.
        dtype: of the loaded weights.
        local_files_only: whether to stay off the network, with an id as well.
        revision: branch, tag or commit on the hub.

    Returns:
        The module that `TowerType.build` makes.

    Raises:
        CheckpointNotFoundError: no such folder, or no `config.json` or safetensors in it.
        CheckpointError: damaged or quantised files; names, shapes or settings that do not fit.
        ConfigError: an encoder that is not known, or more blocks than there are.
    """
    checked = read_tower(
        source, config, blocks=blocks, local_files_only=local_files_only, revision=revision
    )
    tower = find_published_tower(checked.config.model_type)
    return _load(tower.weights_class, checked, dtype, source)


def read_tower(
    source: Source,
    config: PreTrainedConfig | None = None,
    *,
    blocks: int | None = None,
    local_files_only: bool = True,
    revision: str | None = None,
) -> CheckedWeights:
    """Check a published vision encoder without loading it; see `load_tower`."""
    folder = open_published(source, local_files_only=local_files_only, revision=revision)
    tower = find_published_tower(str(folder.settings.get("model_type")))
    stored_config = _read_config(tower, folder)
    config = _wanted(config, stored_config, source)
    tower.fix(config)
    _check_settings(config, stored_config, source)
    if blocks is not None:
        config.num_hidden_layers = blocks
    if not 1 <= config.num_hidden_layers <= stored_config.num_hidden_layers:
        raise ConfigError(
            f"{config.num_hidden_layers} blocks were asked for, the encoder in '{source}' has "
            f"{stored_config.num_hidden_layers}. Choose 1 to {stored_config.num_hidden_layers}."
        )
    with torch.device("meta"):
        empty = tower.build(config)
    expected = _shapes(empty)
    layout = _best_layout(tower.layouts, folder.tensors, expected)
    parts, leftover = _plan(layout, folder.tensors)
    unused = re.compile(re.escape(tower.block_names) + r"(\d+)\.")
    for name in [name for name in parts if name not in expected]:
        part = parts.pop(name)
        block = unused.match(name)
        if block is None or int(block[1]) < config.num_hidden_layers:
            leftover.add(part.key)
    leftover = {key for key in leftover if not layout.is_leftover(key)}
    _check_names(parts, expected, leftover, source)
    return CheckedWeights(config, _read(folder, parts))


def load_language_model(
    source: Source,
    config: Qwen2Config | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = True,
    revision: str | None = None,
) -> Qwen2ForCausalLM:
    """Load a published Qwen2 or Qwen2.5, in evaluation mode; arguments as for `load_tower`.

    Raises:
        CheckpointNotFoundError: no such folder, or no `config.json` or safetensors in it.
        CheckpointError: damaged or quantised files; names, shapes or settings that do not fit.
        ConfigError: a language model of another kind.
    """
    checked = read_language_model(
        source, config, local_files_only=local_files_only, revision=revision
    )
    return cast(Qwen2ForCausalLM, _load(Qwen2ForCausalLM, checked, dtype, source))


def read_language_model(
    source: Source,
    config: Qwen2Config | None = None,
    *,
    local_files_only: bool = True,
    revision: str | None = None,
) -> CheckedWeights:
    """Check a published language model without loading it; see `load_language_model`."""
    folder = open_published(source, local_files_only=local_files_only, revision=revision)
    kind = folder.settings.get("model_type")
    if kind != Qwen2Config.model_type:
        raise ConfigError(
            f"'{source}' is of type {kind!r}. The language model must be a "
            f"{Qwen2Config.model_type!r}, such as Qwen2.5."
        )
    stored_config = _read_config(None, folder)
    config = _wanted(config, stored_config, source)
    _check_settings(config, stored_config, source)
    with torch.device("meta"):
        empty = Qwen2ForCausalLM(config)
    expected = _shapes(empty)
    parts, _ = _plan(KeyLayout(), folder.tensors)
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    if config.tie_word_embeddings:  # one matrix; published folders hold it once, others twice
        expected.pop(head)
        if head in parts and table in parts and not _same(folder, head, table):
            raise CheckpointError(
                f"'{source}' says that {head} is {table}, but holds two different ones. "
                "Set tie_word_embeddings to false in its config.json."
            )
        parts.pop(head, None)
    _check_names(parts, expected, {name for name in parts if name not in expected}, source)
    return CheckedWeights(config, _read(folder, parts))


def _read_config(tower: TowerType | None, folder: PublishedFolder) -> Any:
    try:
        if tower is not None:
            return tower.read_config(folder.settings)
        # auto_map names code to run, dtype how the file stores weights.
        drop = {"auto_map", "torch_dtype", "dtype"}
        return Qwen2Config.from_dict({k: v for k, v in folder.settings.items() if k not in drop})
    except Exception as error:  # transformers' checks raise many kinds
        raise CheckpointError(
            f"the config.json of '{folder.source}' is not valid: {error}. "
            "Copy it from the original checkpoint."
        ) from error


def _wanted(config: Any, stored: Any, source: Source) -> Any:
    """A copy of the configuration to go by, which must be of the folder's type."""
    if config is not None and type(config) is not type(stored):
        raise CheckpointError(
            f"'{source}' is of type {stored.model_type!r}, the configuration of type "
            f"{config.model_type!r}. Give the folder that the configuration belongs to."
        )
    return copy.deepcopy(stored if config is None else config)


def _check_settings(wanted: Any, stored: Any, source: Source) -> None:
    """Compare what shapes do not show: heads, activation, the size of images."""
    for name in inspect.get_annotations(type(stored)):
        if _FREE_SETTING.search(name):
            continue
        ours, theirs = getattr(wanted, name, None), getattr(stored, name)
        if _plain(ours) != _plain(theirs):
            hint = " Learned positions are not interpolated." if name == "image_size" else ""
            raise CheckpointError(
                f"the weights in '{source}' are for {name} = {theirs}, not {ours}.{hint} "
                "Use the configuration they belong to."
            )


def _plain(value: object) -> object:
    """A size may be a number, a list or a tuple; alike ones must compare equal."""
    if isinstance(value, list | tuple):
        return value[0] if len(set(value)) == 1 else tuple(value)
    return value


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _best_layout(
    layouts: Iterable[KeyLayout], stored: Mapping[str, StoredTensor], expected: Iterable[str]
) -> KeyLayout:
    """The layout that finds most of the expected names; no folder mixes two."""
    names = set(expected)

    def found(layout: KeyLayout) -> int:
        return sum(name in names for key in stored for name in layout.translate(key)[0])

    return max(layouts, key=found)


def _plan(
    layout: KeyLayout, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, _Part], set[str]]:
    """Where each name comes from, and the stored keys that the layout has no name for."""
    parts: dict[str, _Part] = {}
    leftover: set[str] = set()
    for key, tensor in stored.items():
        targets, squeeze = layout.translate(key)
        if not targets:
            leftover.add(key)
        shape = tensor.shape[1:] if squeeze and tensor.shape[:1] == (1,) else tensor.shape
        if len(targets) > 1 and shape and shape[0] % len(targets) == 0:
            shape = (shape[0] // len(targets), *shape[1:])
        for index, name in enumerate(targets):
            parts[name] = _Part(key, shape, index, len(targets), squeeze)
    return parts, leftover


def _check_names(
    parts: Mapping[str, _Part],
    expected: Mapping[str, tuple[int, ...]],
    leftover: Iterable[str],
    source: Source,
) -> None:
    """Raise with every kind of misfit, the first names of each and how many there are."""
    sizes = [
        f"{part.key} ({_size(part.shape)}, not {_size(expected[name])})"
        for name, part in parts.items()
        if name in expected and part.shape != expected[name]
    ]
    misfits = {
        "missing": [name for name in expected if name not in parts],
        "left over": sorted(leftover),
        "of another shape": sizes,
    }
    found = [
        f"{len(names)} {what}: {', '.join(names[:_NAMES_SHOWN])}"
        + (", ..." if len(names) > _NAMES_SHOWN else "")
        for what, names in misfits.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"the weights in '{source}' do not fit the configuration ({'; '.join(found)}). "
            "Give the folder that the configuration belongs to."
        )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _read(folder: PublishedFolder, parts: Mapping[str, _Part]) -> dict[str, Tensor]:
    stored = folder.read({part.key for part in parts.values()})
    tensors = {}
    for name, part in parts.items():
        tensor = stored[part.key].squeeze(0) if part.squeeze else stored[part.key]
        if part.count > 1:  # a copy: tensors that share memory cannot be saved as safetensors
            tensor = tensor.chunk(part.count)[part.index].clone()
        tensors[name] = tensor
    return tensors


def _same(folder: PublishedFolder, one: str, other: str) -> bool:
    tensors = folder.read({one, other})
    return torch.equal(tensors[one], tensors[other])


def _load(
    model_class: type[PreTrainedModel], checked: CheckedWeights, dtype: torch.dtype, source: Source
) -> PreTrainedModel:
    with quiet_transformers():
        loaded: Any = model_class.from_pretrained(
            None,
            config=checked.config,
            state_dict=checked.tensors,
            dtype=dtype,
            output_loading_info=True,
        )
    model, info = loaded
    # transformers may rename what it reads, and fills gaps with random numbers.
    if any(info.values()):
        raise CheckpointError(
            f"transformers did not take all weights of '{source}': {info}. "
            "Use the version of transformers that laco-deploy was tested with."
        )
    return cast(PreTrainedModel, model)


__all__ = [
    "CheckedWeights",
    "load_language_model",
    "load_tower",
    "read_language_model",
    "read_tower",
]
