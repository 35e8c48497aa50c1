"""A checkpoint folder to an `ExportJob`: the model's parts, its facts, and its baselines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard
from torch import Tensor, nn

from laco_deploy.model.checkpoint import Checkpoint, load_checkpoint, unwarned
from laco_deploy.model.config import LacoConfig, square_side
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.model.vision import LacoVisionEncoder
from laco_export.choices import choose
from laco_export.exporter import ExportResult, Progress, check_target, export_bundle
from laco_export.job import CardFacts, ExportJob, ParitySample, VariantSource
from laco_export.parity import check_samples
from laco_export.protocols import Floats, GreedyAnswer
from laco_runtimes.bundle import check_replaceable
from laco_runtimes.errors import CheckpointError, ExportError
from laco_runtimes.manifest import MAIN_VARIANT, LanguageFacts, MergerFacts, VisionFacts

COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
)
"""Files of the checkpoint that go into the bundle; `tokenizer_config.json` only if there is one."""


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    target: str,
    parity_samples: Sequence[ParitySample],
    precision: str = "fp32",
    baselines: Sequence[str] = (),
    progress: Progress | None = None,
) -> ExportResult:
    """Export a checkpoint folder as a bundle.

    Args:
        checkpoint: folder that `laco train` or `laco init` wrote.
        out: folder of the bundle; an older bundle there is replaced.
        target: name of an engine, a key of `laco_export.targets.TARGETS`.
        parity_samples: images and prompts on which the engine is compared with PyTorch.
        precision: of the weights.
        baselines: names in `BASELINES`, to measure against.
        progress: told of every step.

    Raises:
        CheckpointError: the folder is no checkpoint, or lacks a file.
        LacoError: all that `laco_export.exporter.export_bundle` raises.
    """
    check_target(target, precision)  # before a large model is read
    check_samples(parity_samples)
    check_replaceable(Path(out))
    for name in baselines:
        choose("baseline", name, BASELINES)
    job = build_job(
        load_checkpoint(checkpoint),
        target=target,
        parity_samples=parity_samples,
        precision=precision,
        baselines=baselines,
    )
    return export_bundle(job, Path(out), progress)


def build_job(
    checkpoint: Checkpoint,
    *,
    target: str,
    parity_samples: Sequence[ParitySample],
    precision: str = "fp32",
    baselines: Sequence[str] = (),
) -> ExportJob:
    """Take a checkpoint apart for the exporter. The modules are shared with it, not copied.

    Raises:
        ArgumentError: an unknown baseline.
        CheckpointError: a file that belongs into the bundle is missing.
        ExportError: a language model with attention that is not exported, or a layout of images
            that a bundle does not have.
    """
    config, model = checkpoint.config, checkpoint.model.float().eval()
    _check_images(config)
    variants = [_as_trained(config, model)]
    for name in dict.fromkeys(baselines):
        variants.append(choose("baseline", name, BASELINES)(config, model))
    language, theta = _language_facts(config)
    return ExportJob(
        target=target,
        precision=precision,
        variants=tuple(variants),
        vision=VisionFacts(
            model_type=config.vision.model_type,
            blocks=config.vision.num_hidden_layers,
            width=config.vision.hidden_size,
            image_size=config.image_size,
            patch_size=square_side(config.vision.patch_size),
        ),
        language=language,
        body=model.model.language_model,
        head=model.lm_head,
        rope_theta=theta,
        reference=TorchReference(model),
        preprocessing=checkpoint.preprocessing,
        prompt=checkpoint.template,
        files=_files(checkpoint.root),
        parity_samples=tuple(parity_samples),
        card=_card(checkpoint),
        versions={"transformers": transformers.__version__},
    )


class TorchReference:
    """The model itself, asked through its own public methods.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: LacoForConditionalGeneration) -> None:
        self._model = model

    def image_features(self, pixel_values: Floats) -> Floats:
        """[tiles, 3, S, S] -> [tiles, N', D]."""
        with torch.no_grad():
            features = self._model.get_image_features(torch.from_numpy(pixel_values))
        return features.numpy()

    def prefill_logits(self, pixel_values: Floats, ids: list[int]) -> Floats:
        """Logits after the whole prompt, [V]."""
        with torch.no_grad():
            output = self._model(
                input_ids=torch.tensor([ids]),
                pixel_values=torch.from_numpy(pixel_values),
                logits_to_keep=1,
            )
        return output.logits[0, -1].numpy()  # type: ignore[no-any-return]

    def greedy(self, pixel_values: Floats, ids: list[int], max_new_tokens: int) -> GreedyAnswer:
        """transformers' own `generate`, past stop tokens, with the gap of the best two logits."""
        prompt = torch.tensor([ids])
        model: Any = self._model  # `generate` is typed for other classes
        with unwarned():  # it warns, for every image, that nothing will stop it
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                pixel_values=torch.from_numpy(pixel_values),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=-1,  # no token has it, so nothing ends the answer early
                pad_token_id=0,  # never used
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.cat(output.logits).topk(2).values  # [new tokens, 2]
        return GreedyAnswer(
            tokens=tuple(output.sequences[0, len(ids) :].tolist()),
            margins=tuple((best[:, 0] - best[:, 1]).tolist()),
        )


class BaselineEncoder(nn.Module):
    """The trained encoder without the mergers inside it, and those given behind it.

    Args:
        config: of the trained model.
        model: whose weights are used, and shared.
        mergers: applied in order after the encoder's final norm.
    """

    def __init__(
        self, config: LacoConfig, model: LacoForConditionalGeneration, mergers: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        plain = LacoConfig.from_dict({**config.to_dict(), "mergers": []})
        with torch.device("meta"):  # no memory: the tower is the trained one
            self.encoder = LacoVisionEncoder(plain)
        self.encoder.tower = model.model.vision_encoder.tower
        self.mergers = nn.ModuleList(mergers)
        self.projector = model.model.projector

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[tiles, 3, S, S] -> [tiles, N', D]."""
        tokens = self.encoder(pixel_values)  # [tiles, N, C]
        for merger in self.mergers:
            tokens = merger(tokens)
        return self.projector(tokens)  # type: ignore[no-any-return]


def _as_trained(config: LacoConfig, model: LacoForConditionalGeneration) -> VariantSource:
    mergers = tuple(
        MergerFacts(kind=one.kind, after_block=one.after_block, ratio=one.ratio)
        for one in config.merger_specs
    )
    return VariantSource(MAIN_VARIANT, model, mergers, config.merged_grid)


def _uncompressed(config: LacoConfig, model: LacoForConditionalGeneration) -> VariantSource:
    """No merger at all: every patch reaches the language model."""
    return VariantSource("uncompressed", BaselineEncoder(config, model, ()), (), config.patch_grid)


def _external(config: LacoConfig, model: LacoForConditionalGeneration) -> VariantSource:
    """The same mergers behind the encoder: as few tokens in the end, none saved on the way."""
    inside = model.model.vision_encoder.mergers
    specs = config.merger_specs
    moved = BaselineEncoder(config, model, [inside[str(one.after_block)] for one in specs])
    blocks = config.vision.num_hidden_layers
    mergers = tuple(
        MergerFacts(kind=one.kind, after_block=blocks, ratio=one.ratio) for one in specs
    )
    return VariantSource("external", moved, mergers, config.merged_grid)


BASELINES: dict[str, Callable[[LacoConfig, LacoForConditionalGeneration], VariantSource]] = {
    "uncompressed": _uncompressed,
    "external": _external,
}
"""What `laco bench` compares with. They share the language model and all weights, and were not
trained this way: right about time, not words."""


def _check_images(config: LacoConfig) -> None:
    """A runtime shows an image as one tile, without a vector behind it."""
    if config.image_newline or config.image_mode != "square":
        raise ExportError(
            "the model cuts an image into tiles or ends it with image_newline, which a bundle does "
            "not do yet. Train with `--set image_mode=square image_newline=false`."
        )


def _language_facts(config: LacoConfig) -> tuple[LanguageFacts, float]:
    """Shapes of the language model, and the base of its rotary frequencies.

    Raises:
        ExportError: sliding-window attention, scaled rotary embeddings or another activation.
    """
    text = config.text
    rope: dict[str, Any] = dict(text.rope_parameters or {})
    if rope.get("rope_type") != "default" or "sliding_attention" in (text.layer_types or ()):
        raise ExportError(
            "the language model uses scaled rotary embeddings or sliding-window attention, which "
            "are not exported. Use one with plain rotary embeddings and full attention."
        )
    heads = text.num_attention_heads
    facts = LanguageFacts(
        model_type=text.model_type,
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        heads=heads,
        kv_heads=text.num_key_value_heads or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
    )
    return facts, float(rope["rope_theta"])


def _files(root: Path) -> dict[str, Path]:
    files = {name: root / name for name in COPIED_FILES if (root / name).is_file()}
    if missing := sorted(set(COPIED_FILES) - {"tokenizer_config.json"} - set(files)):
        raise CheckpointError(
            f"'{root}' holds no {missing[0]}, which belongs into a bundle. "
            "Copy it from the original checkpoint."
        )
    return files


def _card(checkpoint: Checkpoint) -> CardFacts:
    """What the checkpoint's README states about its origin; the configuration may name base models.

    Raises:
        CheckpointError: a README whose front matter cannot be read.
    """
    readme = checkpoint.root / "README.md"
    stated: dict[str, Any] = {}
    if readme.is_file():
        try:
            stated = ModelCard.load(readme).data.to_dict()
        except Exception as error:  # YAML's errors have no base that huggingface_hub names
            raise CheckpointError(
                f"the front matter of '{readme}' is not YAML. Mend it or take the file away."
            ) from error
    config = checkpoint.config
    bases = stated.get("base_model") or [config.vision.name_or_path, config.text.name_or_path]
    bases = [bases] if isinstance(bases, str) else bases
    licence = stated.get("license_name") or stated.get("license")
    return CardFacts(
        name=str(stated["model_name"]) if stated.get("model_name") else None,
        licence=str(licence) if licence else None,
        # A path of the machine that trained says nothing to anybody else.
        base_models=tuple(str(name) for name in bases if name and not Path(name).is_absolute()),
    )


__all__ = ["BASELINES", "BaselineEncoder", "TorchReference", "build_job", "export_checkpoint"]
