"""The model card of a checkpoint trained by a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.training.data import READING_TASKS
from laco_deploy.training.evaluation import Score, pooled

SUMMARY: tuple[tuple[str, str], ...] = (
    ("digits, reading", "digits"),
    ("digits, counting", "digits"),
    ("shapes", "shapes"),
    ("text", "text"),
    ("charts", "charts"),
)
"""Rows of the summary and the group each belongs to."""

NAMES: Mapping[str, str] = {"laco": "LaCo"}
"""Mergers that are called otherwise than in a configuration."""


def summarise(scores: Iterable[Score]) -> list[Score]:
    """The card's rows: reading digits apart from counting them, the other groups whole."""
    scores = list(scores)
    rows = []
    for name, group in SUMMARY:
        chosen = [s for s in scores if s.group == group]
        if group == "digits":
            reading = "reading" in name
            chosen = [s for s in chosen if (s.task in READING_TASKS) == reading]
        if chosen:
            rows.append(pooled(name, chosen))
    return rows


def training_card(record: dict[str, Any], model: LacoForConditionalGeneration) -> str:
    """Markdown with the command, the seed, the time and the accuracy on the test split."""
    scores = [Score(**values) for values in record["test"]]
    config, recipe = cast(LacoConfig, model.config), record["recipe"]
    height, width = config.patch_grid
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        "---",
        "license: apache-2.0",
        "pipeline_tag: image-text-to-text",
        "---",
        "",
        f"# laco-{recipe['name']}",
        "",
        f"A vision-language model of {parameters / 1e6:.1f} million parameters, trained from "
        "scratch by laco-deploy to try its tools on. It answers short questions about handwritten "
        "digits, coloured shapes, single words and bar charts, and nothing else.",
        "",
        f"* Encoder: AIMv2-shaped, {config.vision.num_hidden_layers} blocks x "
        f"{config.vision.hidden_size}, {config.vision.image_size} px, patch "
        f"{config.vision.patch_size}, {height * width} patches.",
        f"* {_mergers(config)}: {config.tokens_per_tile} visual tokens per image.",
        f"* Language model: Qwen2-shaped, {config.text.num_hidden_layers} layers x "
        f"{config.text.hidden_size}, {config.text.vocab_size} tokens.",
        "",
        "## Training",
        "",
        f"    {record['command']}",
        "",
        f"Seed {record['seed']}, {recipe['steps']:,} steps of {recipe['batch_size']} pictures, "
        f"{record['minutes']} minutes. Versions: "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + ". `training.json` holds the losses and every setting.",
        "",
        "## Accuracy",
        "",
        "Exact match of the greedy answer on the test split (scans, seeds and pictures apart from "
        "training; the words are the same, differently set).",
        "",
        "| group | right | of | accuracy |",
        "|---|---|---|---|",
        *(_row(score.group, score) for score in summarise(scores)),
        "",
        "| task | right | of | accuracy |",
        "|---|---|---|---|",
        *(_row(f"{score.group}: {score.task}", score) for score in scores),
        "",
        "Digit scans: Optical Recognition of Handwritten Digits (UCI), as shipped by scikit-learn.",
        "",
    ]
    return "\n".join(lines)


def _mergers(config: LacoConfig) -> str:
    found = [
        f"{NAMES.get(spec.kind, spec.kind)} merger after block {spec.after_block}, "
        f"ratio {spec.ratio}"
        for spec in config.merger_specs
    ]
    return "; ".join(found) or "No merger"


def _row(name: str, score: Score) -> str:
    return f"| {name} | {score.correct} | {score.total} | {score.accuracy:.1%} |"


__all__ = ["summarise", "training_card"]
