"""The bundle's README: what is in it, how to run it, how close it is to PyTorch, whence it came."""

from __future__ import annotations

from laco_export.job import CardFacts
from laco_export.parity.measures import MEASURES
from laco_export.parity.verdict import STAGES, figure
from laco_runtimes.manifest import BundleFacts, ImageLayout, Parity, Variant

NOT_STATED = "not stated"


def model_card(card: CardFacts, facts: BundleFacts) -> str:
    """Markdown with the front matter of a Hugging Face model card."""
    sections = (
        _front_matter(card),
        _summary(card, facts),
        _run(facts),
        _parity(facts),
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
        ("Images", _images(facts.layout)),
        (
            "Language model",
            f"{language.model_type}, {language.layers} layers of width {language.hidden_size}, "
            f"{language.vocab_size} tokens, context of {language.max_positions}",
        ),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    variants = [
        "| variant | mergers | visual tokens |",
        "|---|---|---|",
        *(
            f"| {one.name}{' (for timing only)' if one.latency_only else ''} "
            f"| {_mergers(one, facts.vision.blocks)} "
            f"| {facts.said_tokens(one)}, "
            f"from {patches if one.mergers else one.tokens_per_tile} patches |"
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


def _images(layout: ImageLayout) -> str:
    shown = "one tile"
    if layout.image_mode == "anyres":
        shown = (
            "alone in a prompt: a tile of the whole and a grid of tiles of its parts, of which at "
            f"most about {layout.max_tiles} tiles' tokens are kept; among others: one tile"
        )
    return shown + (", with `image_newline` at the ends" if layout.newline else "")


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


def _parity(facts: BundleFacts) -> str:
    if facts.parity is None:
        return f"""## Parity with PyTorch

Unverified: {facts.unverified}. The engine compares itself with stored answers of the model where
`selftest.npz` is in the bundle: `laco verify . --run`.
"""
    found = facts.parity
    legend = "\n".join(
        f"* `{stage}`: {text.format(target=facts.target)}" for stage, text in STAGES.items()
    )
    rows = "\n".join(f"| {' | '.join(row)} |" for row in parity_rows(found))
    return f"""## Parity with PyTorch

Measured on {facts.target} {facts.versions.get(facts.target.replace("-", "_"), "")} at export, on
{found.images} images ({found.adversarial_images} of them adversarial) and {found.prompts} prompts;
answers of {found.greedy_tokens} tokens about {found.answered_images} images.

| stage | figure | found | asked for | |
|---|---|---|---|---|
{rows}

{found.greedy_identical} of {found.answered_images} greedy answers are identical, token for token.
{_ties(found)}
{legend}
{_noise(found)}"""


SIGNS = {"at least": "≥", "at most": "≤"}


def parity_rows(parity: Parity) -> list[tuple[str, str, str, str, str]]:
    """Stage, figure, what was found, what was asked for, and the verdict, for a table."""
    return [
        (
            check.stage,
            MEASURES.get(check.measure, check.measure),
            figure(check.found),
            "-" if check.limit is None else f"{SIGNS[check.wanted]} {figure(check.limit)}",
            "" if check.limit is None else ("met" if check.met else "missed"),
        )
        for check in parity.checks
    ]


def _ties(parity: Parity) -> str:
    if not parity.ties:
        return ""
    return (
        f"At {parity.ties} positions the likeliest token is another where the reference's best two "
        "are as good as equal; these count as agreement.\n"
    )


def _noise(parity: Parity) -> str:
    if parity.noise is None:
        return ""
    return (
        "\nThe fp32 graphs asked twice differ by at most "
        f"{figure(parity.noise.repeated_logits)} in a logit, and with one thread by "
        f"{figure(parity.noise.threads_logits)} (cosine of a visual token at least "
        f"{figure(parity.noise.threads_cosine_min)}): less says nothing.\n"
    )


def _origin(card: CardFacts, facts: BundleFacts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return f"""## Origin and licence

* Trained from: {", ".join(card.base_models) or NOT_STATED}
* Licence of the weights: {card.licence or NOT_STATED}
* Exported with: {versions}
"""


__all__ = ["model_card", "parity_rows"]
