"""The model card of a checkpoint that `laco init` wrote."""

from __future__ import annotations

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.facts import model_facts
from laco_deploy.model.parts import Part


def composed_card(
    config: LacoConfig,
    *,
    vision: Part,
    language_model: Part,
    random_weights: bool,
    own_tokenizer: bool,
) -> str:
    """Markdown with the sources, the shapes and the theoretical cost.

    Args:
        config: of the model.
        vision: where the encoder came from.
        language_model: where the language model came from.
        random_weights: whether nothing but settings was taken from the two.
        own_tokenizer: whether the tokenizer is a small one made on the spot.
    """
    parts = (vision, language_model)
    lines = [
        "---",
        *([] if random_weights else _licence(parts)),
        *([] if random_weights else _base_models(parts)),
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "---",
        "",
        f"# {vision.title.rpartition('/')[2]} + {language_model.title.rpartition('/')[2]}",
        "",
        *_state(parts, random_weights, own_tokenizer),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in model_facts(config).rows()),
        "",
        "An operation is a multiplication or an addition of a matrix product or convolution. "
        "Theory leaves out memory traffic and everything small; measure with `laco bench`.",
        "",
    ]
    return "\n".join(lines)


def _state(parts: tuple[Part, Part], random_weights: bool, own_tokenizer: bool) -> list[str]:
    vision, language_model = parts
    if random_weights:
        lines = [
            f"**Random weights: for speed only.** The shapes are those of {vision.title} and "
            f"{language_model.title}; the answers mean nothing."
        ]
        if own_tokenizer:
            lines.append(
                "The tokenizer is a small byte-level one. The embedding has all its published "
                "rows, so that the last layer takes as long as it should."
            )
        return lines
    return [
        f"Encoder from {vision.title}, language model from {language_model.title}. "
        "**Mergers and projector are untrained**: train before use."
    ]


def _licence(parts: tuple[Part, Part]) -> list[str]:
    """The licence where both sources state the same; else all, and as a comment which is whose."""
    stated = list(dict.fromkeys(part.licence for part in parts if part.licence))
    if not stated:
        return []
    whose = [f"# {part.title}: {part.licence or 'not stated'}" for part in parts]
    if not all(part.licence for part in parts):
        return ["license: other", *whose]
    if len(stated) == 1:
        return [f"license: {stated[0]}"]
    return ["license: other", f"license_name: {'-and-'.join(stated)}", *whose]


def _base_models(parts: tuple[Part, Part]) -> list[str]:
    ids = [part.hub_id for part in parts if part.hub_id is not None]
    return ["base_model:", *(f"- {name}" for name in ids)] if ids else []


__all__ = ["composed_card"]
