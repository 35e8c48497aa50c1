"""A checkpoint folder in the Hugging Face layout: read it whole, write it whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_runtimes.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from laco_runtimes.images import Preprocessing
from laco_runtimes.prompt import PromptTemplate, chatml, load_tokenizer

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


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


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a folder that `save_checkpoint` or transformers' `save_pretrained` wrote.

    Only safetensors are read, only from this folder, and no code in it is run.

    Raises:
        CheckpointNotFoundError: no folder, or no `config.json` in it.
        CheckpointError: weights missing, damaged, or not those of the configuration; no tokenizer.
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
    config = _read_config(root)
    model = _read_model(root, config)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        if not (root / name).is_file():
            raise CheckpointError(
                f"'{root}' holds no {name}. Copy it from the original checkpoint."
            )
    tokenizer = load_tokenizer(root / "tokenizer.json")
    return Checkpoint(
        root=root,
        model=model.eval(),
        preprocessing=_read_preprocessing(root, config.image_size),
        template=chatml(tokenizer, image_token_id=config.image_token_id),
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
        tokenizer: saved in the Hugging Face layout.
        preprocessing: saved as `preprocessor_config.json`.
        extra: called with the unfinished folder to add further files, such as the model card.

    Raises:
        CheckpointError: `out` exists and is not a checkpoint.
    """
    out = out.absolute()
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with quiet_transformers():
            model.save_pretrained(temporary)
        for file in temporary.iterdir():  # safetensors makes files only the owner may read
            file.chmod(0o644)
        GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        ).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "preprocessor_config.json").write_text(
            json.dumps(_preprocessor_config(preprocessing), indent=2) + "\n"
        )
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


def _read_config(root: Path) -> LacoConfig:
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
    except ConfigError as error:
        raise CheckpointError(f"'{root / 'config.json'}': {error}") from error


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
    # transformers fills gaps with random numbers; a deployed model must not have any.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info[kind])):
            raise CheckpointError(
                f"the weights in '{root}' do not fit its config.json: {len(keys)} "
                f"{kind.replace('_', ' ')}, the first is {keys[0]}. Use the config they belong to."
            )
    return cast(LacoForConditionalGeneration, model)


def _preprocessor_config(preprocessing: Preprocessing) -> dict[str, Any]:
    side = preprocessing.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # PIL's number for bicubic
        "do_center_crop": False,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(asdict(preprocessing)["mean"]),
        "image_std": list(asdict(preprocessing)["std"]),
    }


def _read_preprocessing(root: Path, image_size: int) -> Preprocessing:
    path = root / "preprocessor_config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        red, green, blue = map(float, values["image_mean"])
        std_red, std_green, std_blue = map(float, values["image_std"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{path}' does not state image_mean and image_std. "
            "Copy it from the original checkpoint."
        ) from error
    # Size comes from the encoder: its position embedding fits no other.
    return Preprocessing(
        image_size=image_size, mean=(red, green, blue), std=(std_red, std_green, std_blue)
    )


__all__ = ["Checkpoint", "check_replaceable", "load_checkpoint", "save_checkpoint"]
