"""One point of a sweep to a bundle: the checkpoint with its merger elsewhere, in some precision.

Weights that were trained behind one block stand behind another: right about time, not about words.
Nothing is compared with PyTorch, and the bundle says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from laco_deploy.baselines import BASELINES
from laco_deploy.exporting import build_job, modules_of
from laco_deploy.model.checkpoint import CheckpointFacts, load_checkpoint, open_checkpoint
from laco_deploy.model.config import LacoConfig
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.parity_data import parity_samples
from laco_export.choices import choose
from laco_export.exporter import check_target, export_bundle
from laco_export.job import Modules
from laco_export.progress import Progress, silent
from laco_runtimes.errors import ArgumentError, ConfigError


def export_point(
    checkpoint: Path,
    out: Path,
    target: str,
    options: Mapping[str, str],
    baselines: Sequence[str],
    *,
    progress: Progress = silent,
) -> None:
    """Export into `out`, which appears when it is whole.

    Args:
        checkpoint: folder.
        out: folder of the bundle.
        target: engine.
        options: value of each axis of the sweep.
        baselines: names in `BASELINES`; those that the model cannot have are left out.
        progress: told of every step.

    Raises:
        LacoError: what `laco_deploy.exporting.export_checkpoint` raises.
    """
    row = check_target(target)
    precision = options.get("precision", "exact")
    halves = options.get("vision_precision"), options.get("llm_precision")
    row.precisions.candidates(precision, *halves)  # before anything large is read
    facts = open_checkpoint(checkpoint)
    place = options.get("after_block")
    if place is not None:
        facts = replace(facts, config=moved_config(facts.config, int(place)))
    names = tuple(name for name in baselines if _has_baseline(name, facts.config))
    job = build_job(facts, target=target, parity_samples=(), precision=precision, baselines=names)
    samples = parity_samples(checkpoint)
    job = replace(
        job,
        vision_precision=halves[0],
        llm_precision=halves[1],
        calibration=tuple(one.image for one in samples if not one.adversarial),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if place is not None:
            config = Path(folder) / "config.json"
            config.write_text(_moved_json(facts, int(place)), encoding="utf-8")
            job = replace(
                job,
                load=partial(load_moved, facts.root, names, int(place)),
                files={**job.files, "config.json": config},
            )
        export_bundle(job, out, progress)


def moved_config(config: LacoConfig, after_block: int) -> LacoConfig:
    """The configuration with its one merger behind another block.

    Raises:
        ArgumentError: not one merger.
        ConfigError: no such block.
    """
    if len(config.merger_specs) != 1:
        raise ArgumentError(
            f"one merger can be moved, and the checkpoint has {len(config.merger_specs)}. "
            "Leave after_block out."
        )
    values = config.to_dict()
    values["mergers"] = [{**values["mergers"][0], "after_block": after_block}]
    return LacoConfig.from_dict(values)


def move_merger(model: LacoForConditionalGeneration, after_block: int) -> None:
    """Put the one merger of a model behind another block; its weights stay.

    Raises:
        ArgumentError, ConfigError: as `moved_config`.
    """
    config = cast(LacoConfig, model.config)
    config.mergers = moved_config(config, after_block).mergers
    encoder = model.model.vision_encoder
    encoder.mergers = nn.ModuleDict({str(after_block): next(iter(encoder.mergers.values()))})


def load_moved(root: Path, baselines: Sequence[str], after_block: int) -> Modules:
    """Read a checkpoint, move its merger and take it apart.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    checkpoint = load_checkpoint(root)
    move_merger(checkpoint.model, after_block)
    return modules_of(checkpoint, baselines)


def _has_baseline(name: str, config: LacoConfig) -> bool:
    try:
        choose("baseline", name, BASELINES)(config)
    except ConfigError:
        return False
    return True


def _moved_json(facts: CheckpointFacts, after_block: int) -> str:
    """The checkpoint's own `config.json`, so that nothing but the place differs."""
    values: Any = json.loads((facts.root / "config.json").read_text(encoding="utf-8"))
    values["mergers"] = [{**facts.config.to_dict()["mergers"][0], "after_block": after_block}]
    return json.dumps(values, indent=2) + "\n"


__all__ = ["export_point", "load_moved", "move_merger", "moved_config"]
