"""A checkpoint folder to an `ExportJob`: the model's parts, its facts, and its baselines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard
from torch import nn

from laco_deploy.baselines import BASELINES, baseline_encoder
from laco_deploy.model.checkpoint import (
    Checkpoint,
    CheckpointFacts,
    open_checkpoint,
)
from laco_deploy.model.config import LacoConfig
from laco_deploy.model.manifest_facts import language_facts, merger_facts, vision_facts
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.model.processing import LacoProcessor
from laco_deploy.module_source import ModuleSource
from laco_deploy.torch_reference import TorchReference
from laco_export.choices import choose
from laco_export.exporter import ExportResult, Progress, check_target, export_bundle
from laco_export.job import (
    CardFacts,
    ExportJob,
    ModelSize,
    Modules,
    ParitySample,
    VariantSource,
)
from laco_export.parity.plan import LARGE, ParityPlan, check_images, plan_for
from laco_export.protocols import ImageEncoder
from laco_export.targets import TargetOptions
from laco_runtimes.bundle import check_replaceable
from laco_runtimes.errors import CheckpointError, ExportError
from laco_runtimes.images import ImageSource
from laco_runtimes.manifest import MAIN_VARIANT, LanguageFacts

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
    precision: str = "exact",
    vision_precision: str | None = None,
    llm_precision: str | None = None,
    baselines: Sequence[str] = (),
    calibration: Sequence[ImageSource] = (),
    options: TargetOptions | None = None,
    keep_source: bool = False,
    plan: ParityPlan | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a checkpoint folder as a bundle.

    A model of more than 1 GB is loaded, compiled and compared in processes of their own. A script
    that exports one must therefore keep its own work below `if __name__ == "__main__":`.

    Args:
        checkpoint: folder that `laco train` or `laco init` wrote.
        out: folder of the bundle; an older bundle there is replaced.
        target: name of an engine, a key of `laco_export.targets.TARGETS`.
        parity_samples: images and prompts on which the engine is compared with PyTorch; none at all
            seals the bundle as unverified.
        precision: of both halves of the model, or a preset: `exact`, `fast`.
        vision_precision: of the vision encoder, instead.
        llm_precision: of the language model, instead.
        baselines: names in `BASELINES`, to measure against.
        calibration: images to calibrate activations on; those of `parity_samples` by default.
        options: further layouts, context and decoder flavour.
        keep_source: leave the fp32 graphs in the bundle also where the engine does not load them.
        plan: how much is compared; by the size of the model by default.
        progress: told of every step.

    Raises:
        CheckpointError: the folder is no checkpoint, or lacks a file.
        LacoError: all that `laco_export.exporter.export_bundle` raises.
    """
    # Before anything large is read.
    row = check_target(target)
    row.precisions.candidates(precision, vision_precision, llm_precision)
    options = options or TargetOptions()
    row.check_options(options)
    check_images(sum(not one.adversarial for one in parity_samples), plan or LARGE)
    check_replaceable(Path(out))
    for name in baselines:
        choose("baseline", name, BASELINES)
    job = build_job(
        open_checkpoint(checkpoint),
        target=target,
        parity_samples=parity_samples,
        precision=precision,
        baselines=baselines,
        plan=plan,
    )
    job = replace(
        job,
        vision_precision=vision_precision,
        llm_precision=llm_precision,
        options=options,
        keep_source=keep_source,
        calibration=tuple(calibration),
    )
    return export_bundle(job, Path(out), progress)


def default_plan(checkpoint: str | os.PathLike[str]) -> ParityPlan:
    """How much is compared of a checkpoint where nothing else is asked for.

    Raises:
        CheckpointError: the folder is no checkpoint.
    """
    return plan_for(_size(open_checkpoint(checkpoint).config).total)


def build_job(
    checkpoint: Checkpoint | CheckpointFacts,
    *,
    target: str,
    parity_samples: Sequence[ParitySample],
    precision: str = "exact",
    baselines: Sequence[str] = (),
    plan: ParityPlan | None = None,
) -> ExportJob:
    """The facts of a checkpoint for the exporter, and how its modules are loaded.

    Those of a `Checkpoint` are shared with it, not copied; of mere facts they are read anew, in
    whichever process needs them.

    Raises:
        ArgumentError: an unknown baseline.
        CheckpointError: a file that belongs into the bundle is missing.
        ExportError: a language model with attention that is not exported.
    """
    config = checkpoint.config
    names = tuple(dict.fromkeys(baselines))
    variants = [_as_trained(config)]
    variants += [choose("baseline", name, BASELINES)(config) for name in names]
    language, theta = _language_facts(config)
    size = _size(config)
    return ExportJob(
        target=target,
        precision=precision,
        variants=tuple(variants),
        vision=vision_facts(config),
        language=language,
        size=size,
        rope_theta=theta,
        load=(
            partial(modules_of, checkpoint, names)
            if isinstance(checkpoint, Checkpoint)
            else ModuleSource(checkpoint.root, names)
        ),
        preprocessing=checkpoint.preprocessing,
        layout=config.image_layout,
        prompt=checkpoint.template,
        files=_files(checkpoint.root),
        parity_samples=tuple(parity_samples),
        plan=plan or plan_for(size.total),
        card=_card(checkpoint),
        versions={"transformers": transformers.__version__},
    )


def modules_of(checkpoint: Checkpoint, baselines: Sequence[str]) -> Modules:
    """Take a checkpoint apart; its weights are shared."""
    config, model = checkpoint.config, checkpoint.model.float().eval()
    encoders: dict[str, ImageEncoder] = {MAIN_VARIANT: model}
    encoders |= {name: baseline_encoder(name, config, model) for name in baselines}
    processor = LacoProcessor.from_pretrained(checkpoint.root, local_files_only=True)
    newline = model.model.image_newline
    return Modules(
        encoders=encoders,
        body=model.model.language_model,
        head=model.lm_head,
        reference=TorchReference(model, processor.image_processor),
        newline=None if newline is None else newline.detach().numpy(),
    )


def _as_trained(config: LacoConfig) -> VariantSource:
    return VariantSource(MAIN_VARIANT, merger_facts(config), config.merged_grid)


def _size(config: LacoConfig) -> ModelSize:
    """Numbers of weights, from a model without memory."""
    with torch.device("meta"):
        model = LacoForConditionalGeneration(config)

    def count(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    body = model.model.language_model
    embedding = count(body.embed_tokens)
    return ModelSize(
        vision_encoder=count(model.model.vision_encoder) + count(model.model.projector),
        embed_tokens=embedding,
        decoder=count(body) - embedding + count(model.lm_head),
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
    return language_facts(config), float(rope["rope_theta"])


def _files(root: Path) -> dict[str, Path]:
    files = {name: root / name for name in COPIED_FILES if (root / name).is_file()}
    if missing := sorted(set(COPIED_FILES) - {"tokenizer_config.json"} - set(files)):
        raise CheckpointError(
            f"'{root}' holds no {missing[0]}, which belongs into a bundle. "
            "Copy it from the original checkpoint."
        )
    return files


def _card(checkpoint: Checkpoint | CheckpointFacts) -> CardFacts:
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


__all__ = [
    "BASELINES",
    "build_job",
    "default_plan",
    "export_checkpoint",
    "modules_of",
]
