"""The parts of a model as training sees them: which learn, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

from torch import nn

from laco_runtimes.errors import ConfigError

Part = Literal["tower", "merger", "projector", "language_model"]

PREFIXES: Mapping[str, Part] = MappingProxyType(
    {
        "model.vision_encoder.tower.": "tower",
        "model.vision_encoder.mergers.": "merger",
        "model.projector.": "projector",
        "model.language_model.": "language_model",
        "model.image_newline": "language_model",  # as LLaVA-OneVision groups it
        "lm_head.": "language_model",
    }
)
"""How parameter names of `LacoForConditionalGeneration` begin. Mergers stand inside the encoder and
are a part of their own all the same: at the tower's small rate they would hardly learn."""


def part_of(name: str) -> Part:
    """The part a parameter belongs to.

    Raises:
        ConfigError: no part knows the name.
    """
    for prefix, part in PREFIXES.items():
        if name.startswith(prefix):
            return part
    raise ConfigError(f"parameter '{name}' belongs to no part. Add it to PREFIXES in parts.py.")


def parameter_groups(
    model: nn.Module, learning_rates: Mapping[Part, float]
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, one per part that learns; every other part is frozen.

    Args:
        model: a `LacoForConditionalGeneration`; `requires_grad` of each parameter is set.
        learning_rates: peak rate per part. A part that is left out is frozen.

    Returns:
        `{"name", "params", "lr"}` in the order of `learning_rates`, none for a part without
        parameters.

    Raises:
        ConfigError: an unknown part.
    """
    if unknown := set(learning_rates) - set(get_args(Part)):
        names = ", ".join(get_args(Part))
        raise ConfigError(f"unknown part {sorted(unknown)[0]!r}. The parts are {names}.")
    members: dict[Part, list[nn.Parameter]] = {part: [] for part in learning_rates}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(part in members)
        if part in members:
            members[part].append(parameter)
    return [
        {"name": part, "params": parameters, "lr": learning_rates[part]}
        for part, parameters in members.items()
        if parameters  # avg_pool learns nothing, and a model may have no merger
    ]


__all__ = ["PREFIXES", "Part", "parameter_groups", "part_of"]
