"""A whole model from an encoder, a language model and mergers: the start of a training, or, with
random weights, something to measure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Config

from laco_deploy.model.checkpoint import quiet_transformers, save_checkpoint, unwarned
from laco_deploy.model.composed_card import composed_card
from laco_deploy.model.config import LacoConfig
from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.model.parts import Part, read_preprocessing
from laco_deploy.model.vocabulary import (
    TOKENIZER_FILE,
    Vocabulary,
    read_vocabulary,
    small_vocabulary,
)
from laco_deploy.model.weights import read_language_model, read_tower
from laco_runtimes.errors import CheckpointError
from laco_runtimes.images import Preprocessing

_TOWER, _LANGUAGE_MODEL = "model.vision_encoder.tower.", "model.language_model."
_NEW = ("model.vision_encoder.mergers.", "model.projector.", "model.image_newline")
"""What no published model has; starts at random, or for a shortcut's branch at zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A model in memory, and all that makes it a checkpoint."""

    model: LacoForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    preprocessing: Preprocessing
    card: str
    """Markdown."""

    @property
    def config(self) -> LacoConfig:
        """The model's configuration."""
        return cast(LacoConfig, self.model.config)

    def save(self, out: Path) -> None:
        """Write a checkpoint folder; it appears under its name only when complete.

        Raises:
            CheckpointError: `out` exists and is not a checkpoint.
        """
        save_checkpoint(
            out,
            model=self.model,
            tokenizer=self.tokenizer,
            preprocessing=self.preprocessing,
            extra=lambda folder: _write_card(folder, self.card),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model of which everything is checked but the weights; nothing large is in memory."""

    vision: Part
    language_model: Part
    config: LacoConfig
    vocabulary: Vocabulary
    preprocessing: Preprocessing
    random_weights: bool

    def build(self, *, seed: int = 0) -> Composition:
        """Check the weights by the headers of their files, then make the model.

        Args:
            seed: of what no published weights fill: mergers, projector, or everything.

        Raises:
            CheckpointNotFoundError: no weights, as with a preset.
            CheckpointError: names or shapes that do not fit, or damaged files.
        """
        published: dict[str, Tensor] = {}
        if not self.random_weights:
            folders = self.vision.fetch_weights(), self.language_model.fetch_weights()
            published = _published(*folders, self.config.vision.num_hidden_layers)
        config = copy.deepcopy(self.config)
        return Composition(
            model=_build(config, published, seed),
            tokenizer=self.vocabulary.tokenizer,
            preprocessing=self.preprocessing,
            card=composed_card(
                config,
                vision=self.vision,
                language_model=self.language_model,
                random_weights=self.random_weights,
                own_tokenizer=not self.vocabulary.is_published,
            ),
        )


def plan(
    vision: Part,
    language_model: Part,
    mergers: Sequence[MergerSpec] | None = None,
    *,
    random_weights: bool = False,
    tokenizer: Path | None = None,
    **settings: Any,
) -> Plan:
    """Put two models and mergers together on paper.

    Args:
        vision: what `find_vision` found.
        language_model: what `find_language_model` found.
        mergers: in rising order; None is one LaCo merger after a quarter of the blocks, an empty
            sequence an uncompressed model.
        random_weights: take the settings of both, and no weights.
        tokenizer: folder with a `tokenizer.json`; by default that of the language model. A preset
            has none: a small one is made then.
        **settings: further fields of `LacoConfig`, such as `image_mode`.

    Raises:
        ConfigError: settings that do not fit together, k out of range, a tokenizer too large.
        CheckpointNotFoundError: a preset without `random_weights`.
        CheckpointError: no tokenizer, or a file that is damaged.
    """
    if not random_weights:
        for part in (vision, language_model):
            part.published_folder()
    text = cast(Qwen2Config, copy.deepcopy(language_model.config))
    config = LacoConfig(
        vision_config=vision.config.to_dict(),
        text_config=text.to_dict(),
        mergers=None if mergers is None else [asdict(spec) for spec in mergers],
        **settings,
    )
    vocabulary = _vocabulary(language_model, text, tokenizer, random_weights)
    config.image_token_id = vocabulary.image_token_id
    config.text.eos_token_id = vocabulary.end_token_id
    if not vocabulary.is_published:
        config.text.bos_token_id = None  # of a vocabulary that is not there
    return Plan(
        vision=vision,
        language_model=language_model,
        config=config,
        vocabulary=vocabulary,
        preprocessing=read_preprocessing(vision, config.image_size),
        random_weights=random_weights,
    )


def compose(
    vision: Part,
    language_model: Part,
    mergers: Sequence[MergerSpec] | None = None,
    *,
    random_weights: bool = False,
    tokenizer: Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> Composition:
    """`plan`, then `Plan.build`."""
    planned = plan(
        vision,
        language_model,
        mergers,
        random_weights=random_weights,
        tokenizer=tokenizer,
        **settings,
    )
    return planned.build(seed=seed)


def _vocabulary(
    part: Part, text: Qwen2Config, tokenizer: Path | None, random_weights: bool
) -> Vocabulary:
    rows, length = text.vocab_size, text.max_position_embeddings
    if tokenizer is not None:
        return read_vocabulary(tokenizer, rows, length)
    has_own = part.folder is not None and (part.folder / TOKENIZER_FILE).is_file()
    if part.folder is not None and (has_own or not random_weights):
        return read_vocabulary(part.folder, rows, length)
    return small_vocabulary(length)


def _published(vision: Path, language_model: Path, blocks: int) -> dict[str, Tensor]:
    """Weights by their names in the whole model; mostly views of the files."""
    text = read_language_model(language_model).tensors
    tower = read_tower(vision, blocks=blocks).tensors
    tensors = {_TOWER + name: tensor for name, tensor in tower.items()}
    for name, tensor in text.items():
        inner = name.removeprefix("model.")
        tensors[name if inner == name else _LANGUAGE_MODEL + inner] = tensor
    return tensors


def _build(
    config: LacoConfig, published: dict[str, Tensor], seed: int
) -> LacoForConditionalGeneration:
    """Fill a model with the published weights; transformers draws only what is missing."""
    with torch.random.fork_rng(devices=[]), quiet_transformers(), unwarned():
        torch.manual_seed(seed)
        loaded: Any = LacoForConditionalGeneration.from_pretrained(
            None,
            config=config,
            state_dict=published,
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, info = loaded
    missing = {name for name in info.pop("missing_keys") if published}
    if any(info.values()) or any(not name.startswith(_NEW) for name in missing):
        raise CheckpointError(
            f"transformers did not take all weights: {info}, missing {sorted(missing)[:5]}. "
            "Use the version of transformers that laco-deploy was tested with."
        )
    return cast(LacoForConditionalGeneration, model).eval()


def _write_card(folder: Path, card: str) -> None:
    (folder / "README.md").write_text(card, encoding="utf-8")


__all__ = ["Composition", "Plan", "compose", "plan"]
