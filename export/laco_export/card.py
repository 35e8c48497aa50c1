"""The bundle's README: what is in it, how to run it, how close it is to PyTorch, whence it came."""

from __future__ import annotations

from laco_export.job import CardFacts
from laco_export.parity import ParityReport
from laco_runtimes.manifest import BundleFacts, Variant

NOT_STATED = "not stated"


def model_card(card: CardFacts, facts: BundleFacts, report: ParityReport) -> str:
    """Markdown with the front matter of a Hugging Face model card."""
    sections = (
        _front_matter(card),
        _summary(card, facts),
        _run(facts),
        _parity(facts, report),
        _origin(card, facts),
    )
    return "\n".join(sections)


def _front_matter(card: CardFacts) -> str:
    lines = ["---", "library_name: laco-deploy", "pipeline_tag: image-text-to-text"]
    if card.licence:
        lines.append(f"license: {card.licence}")
    if card.base_models:
        lines += ["base_model:", *(f"  - {name}" for name in card.base_models)]
    return "\n".join([*lines, "---", ""])


def _summary(card: CardFacts, facts: BundleFacts) -> str:
    vision, language = facts.vision, facts.language
    patches = (vision.image_size // vision.patch_size) ** 2
    rows = [
        ("Target", f"{facts.target}, {', '.join(sorted(set(facts.precision.values())))}"),
        (
            "Vision encoder",
            f"{vision.model_type}, {vision.blocks} blocks of width {vision.width}, images of "
            f"{vision.image_size} x {vision.image_size} pixels in patches of {vision.patch_size}",
        ),
        (
            "Language model",
            f"{language.model_type}, {language.layers} layers of width {language.hidden_size}, "
            f"{language.vocab_size} tokens, context of {language.max_positions}",
        ),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    variants = [
        "| variant | mergers | visual tokens per image |",
        "|---|---|---|",
        *(
            f"| {one.name}{' (for timing only)' if one.latency_only else ''} "
            f"| {_mergers(one, facts.vision.blocks)} | {one.tokens_per_tile} of {patches} patches |"
            for one in facts.variants
        ),
    ]
    opening = [
        f"# {card.name or 'LaCo vision-language model'}",
        "",
        "A vision-language model that merges visual tokens inside its encoder (LaCo), exported by "
        f"{facts.created_by}.",
        "",
    ]
    return "\n".join([*opening, *table, "", *variants, ""])


def _mergers(variant: Variant, blocks: int) -> str:
    names = [
        f"{one.kind} {one.ratio} x {one.ratio} after block {one.after_block} of {blocks}"
        for one in variant.mergers
    ]
    return ", ".join(names) or "none"


def _run(facts: BundleFacts) -> str:
    return f"""## Run

```sh
pip install 'laco-deploy[{facts.target}]'
laco chat . --image photo.jpg "What is in the image?"
```

```python
from laco_deploy import Pipeline

print(Pipeline(".").chat("photo.jpg", "What is in the image?"))
```

`.` is this folder. `laco verify .` checks every file against `laco.json`.
"""


def _parity(facts: BundleFacts, report: ParityReport) -> str:
    found = facts.parity
    ties = "".join(f"\n* {sentence[0].upper()}{sentence[1:]}" for sentence in report.ties)
    return f"""## Parity with PyTorch

Measured on {facts.target} {facts.versions[facts.target]} at export, on {found.images} images.

| comparison | found |
|---|---|
| cosine of a visual token, least | {found.visual_token_cosine_min:.7f} |
| cosine of a visual token, mean | {found.visual_token_cosine_mean:.7f} |
| logits after the prompt, largest difference | {found.logits_max_abs_difference:.2e} |
| greedy continuations of {found.greedy_tokens} tokens, identical | \
{found.greedy_identical} of {found.images} |
{ties}
"""


def _origin(card: CardFacts, facts: BundleFacts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return f"""## Origin and licence

* Trained from: {", ".join(card.base_models) or NOT_STATED}
* Licence of the weights: {card.licence or NOT_STATED}
* Exported with: {versions}
"""


__all__ = ["model_card"]
