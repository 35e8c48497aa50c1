"""A checkpoint folder in the Hugging Face layout: read it whole, write it whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.model.processing import LacoProcessor
from laco_deploy.model.published import open_published
from laco_runtimes.errors import CheckpointError, CheckpointNotFoundError
from laco_runtimes.images import Preprocessing
from laco_runtimes.prompt import PromptTemplate, chatml, load_tokenizer

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
IMAGE_FILES = ("processor_config.json", "preprocessor_config.json")
"""Either states mean and std; the first one wins, as in transformers."""

_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in memory, the model in evaluation mode."""

    root: Path
    model: LacoForConditionalGeneration
    preprocessing: Preprocessing
    template: PromptTemplate

    @property
    def config(self) -> LacoConfig:
        """The model's configuration."""
        return cast(LacoConfig, self.model.config)

    @property
    def tokenizer_path(self) -> Path:
        """`tokenizer.json`."""
        return self.root / "tokenizer.json"


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """A checkpoint folder that was looked through, its weights left on the disk."""

    root: Path
    config: LacoConfig
    preprocessing: Preprocessing
    template: PromptTemplate


def open_checkpoint(path: str | os.PathLike[str]) -> CheckpointFacts:
    """Read all of a checkpoint but its weights; their names and shapes are checked.

    Raises:
        CheckpointNotFoundError: as `load_checkpoint`.
        CheckpointError: as `load_checkpoint`.
    """
    root = Path(path)
    if not (root / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"'{root}' is no checkpoint: there is no config.json in it. "
            "Give the folder that `laco train` wrote."
        )
    if not any((root / name).is_file() for name in WEIGHT_FILES):
        raise CheckpointNotFoundError(
            f"'{root}' holds no weights ({WEIGHT_FILES[0]}). Copy them into it or train again."
        )
    config = read_config(root)
    if not (root / "tokenizer.json").is_file():
        raise CheckpointError(
            f"'{root}' holds no tokenizer.json. Copy it from the original checkpoint."
        )
    preprocessing = _read_preprocessing(root, config.image_size)
    _check_weights(root, config)
    tokenizer = load_tokenizer(root / "tokenizer.json")
    return CheckpointFacts(
        root, config, preprocessing, chatml(tokenizer, image_token_id=config.image_token_id)
    )


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a folder that `save_checkpoint` or transformers' `save_pretrained` wrote.

    Only safetensors are read, only from this folder, and no code in it is run.

    Raises:
        CheckpointNotFoundError: no folder, or no `config.json` in it.
        CheckpointError: weights damaged, or not those of the configuration; no tokenizer, or no
            image mean and std.
    """
    facts = open_checkpoint(path)
    return Checkpoint(
        root=facts.root,
        model=_read_model(facts.root, facts.config).eval(),
        preprocessing=facts.preprocessing,
        template=facts.template,
    )


def save_checkpoint(
    out: Path,
    *,
    model: LacoForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    preprocessing: Preprocessing,
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint folder; it appears under its name only when complete.

    Args:
        out: folder to write; an older checkpoint there is replaced, anything else is an error.
        model: saved as safetensors.
        tokenizer: saved in the Hugging Face layout. Its chat template becomes ChatML with LLaVA's
            system turn, as the prompts of a runtime are.
        preprocessing: saved for the processor of transformers and as `preprocessor_config.json`.
        extra: called with the unfinished folder to add further files, such as the model card.

    Raises:
        ArgumentError: the tokenizer has no token of the model's `image_token_id`.
        BundleError: the tokenizer has no ChatML tokens.
        CheckpointError: `out` exists and is not a checkpoint.
    """
    out = out.absolute()
    check_replaceable(out)
    config = cast(LacoConfig, model.config)
    processor = LacoProcessor.from_config(config, tokenizer, preprocessing)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with quiet_transformers():
            model.save_pretrained(temporary)
        for file in temporary.iterdir():  # safetensors makes files only the owner may read
            file.chmod(0o644)
        processor.save_pretrained(temporary)  # with the tokenizer
        # transformers' processors need no such file; bundles carry one for other tools.
        processor.image_processor.save_pretrained(temporary)
        plain = load_tokenizer(temporary / "tokenizer.json")
        stop = chatml(plain, image_token_id=config.image_token_id).stop
        GenerationConfig(
            eos_token_id=list(stop), pad_token_id=tokenizer.pad_token_id
        ).save_pretrained(temporary)
        if extra is not None:
            extra(temporary)
        temporary.chmod(0o755)
        _swap(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal; the commands have theirs."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextmanager
def unwarned() -> Iterator[None]:
    """Keep back transformers' warnings about what is meant to be as it is."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


def check_replaceable(out: Path) -> None:
    """Raise before hours of work when `out` could not be written in the end.

    Raises:
        CheckpointError: `out` exists and is neither empty nor a checkpoint.
    """
    if (
        out.exists()
        and not (out / "config.json").is_file()
        and (out.is_file() or any(out.iterdir()))
    ):
        raise CheckpointError(
            f"'{out}' exists and is not a checkpoint, so it is left alone. Choose another folder."
        )


def _swap(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old / out.name)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def read_config(root: Path) -> LacoConfig:
    """The configuration of a checkpoint folder, without its weights.

    Raises:
        CheckpointError: not JSON, another type of model, or a configuration that is not valid.
    """
    try:
        values: dict[str, Any] = json.loads((root / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"'{root / 'config.json'}' is not JSON. Copy it from the original checkpoint."
        ) from error
    if values.get("model_type") != LacoConfig.model_type:
        raise CheckpointError(
            f"'{root}' is a checkpoint of model type {values.get('model_type')!r}, not "
            f"{LacoConfig.model_type!r}. Give a folder that `laco train` wrote."
        )
    try:
        return LacoConfig.from_pretrained(root, local_files_only=True)
    except Exception as error:  # transformers' checks raise many kinds
        raise CheckpointError(f"'{root / 'config.json'}' is not valid: {error}") from error


def _check_weights(root: Path, config: LacoConfig) -> None:
    """Compare the headers of the files with the model, before memory is taken for it."""
    stored = {name: tensor.shape for name, tensor in open_published(root).tensors.items()}
    with torch.device("meta"):
        empty = LacoForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if config.tie_word_embeddings:  # one matrix, which files hold under one name
        stored.pop("lm_head.weight", None)
        expected.pop("lm_head.weight")
    sizes = [name for name in expected if stored.get(name, expected[name]) != expected[name]]
    misfits = {
        "missing keys": [name for name in expected if name not in stored],
        "unexpected keys": [name for name in stored if name not in expected],
        "keys of another shape": [f"{n} ({stored[n]}, not {expected[n]})" for n in sizes],
    }
    found = [
        f"{len(names)} {kind}: {', '.join(sorted(names)[:_NAMES_SHOWN])}"
        + (", ..." if len(names) > _NAMES_SHOWN else "")
        for kind, names in misfits.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"the weights in '{root}' do not fit its config.json ({'; '.join(found)}). "
            "Use the config they belong to."
        )


def _read_model(root: Path, config: LacoConfig) -> LacoForConditionalGeneration:
    try:
        with quiet_transformers():
            loaded: Any = LacoForConditionalGeneration.from_pretrained(
                root,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise CheckpointError(
            f"the weights in '{root}' cannot be read ({type(error).__name__}). "
            "The file may be damaged: copy it again."
        ) from error
    model, info = loaded  # output_loading_info makes it a pair
    # transformers may rename what it reads, and fills gaps with random numbers.
    if any(info.values()):
        raise CheckpointError(
            f"transformers did not take all weights of '{root}': {info}. "
            "Use the version of transformers that laco-deploy was tested with."
        )
    return cast(LacoForConditionalGeneration, model)


def _read_preprocessing(root: Path, image_size: int) -> Preprocessing:
    for name in IMAGE_FILES:
        path = root / name
        try:
            values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            values = values.get("image_processor", values)
            if "image_mean" not in values:
                continue
            red, green, blue = map(float, values["image_mean"])
            std_red, std_green, std_blue = map(float, values["image_std"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"'{path}' does not state image_mean and image_std. "
                "Copy it from the original checkpoint."
            ) from error
        # Size comes from the encoder: its position embedding fits no other.
        return Preprocessing(
            image_size=image_size, mean=(red, green, blue), std=(std_red, std_green, std_blue)
        )
    raise CheckpointError(
        f"'{root}' holds no {IMAGE_FILES[-1]} that states image_mean and image_std. "
        "Copy it from the original checkpoint."
    )


__all__ = [
    "Checkpoint",
    "CheckpointFacts",
    "check_replaceable",
    "load_checkpoint",
    "open_checkpoint",
    "quiet_transformers",
    "read_config",
    "save_checkpoint",
    "unwarned",
]
