"""Vision encoders, as a table: how to build one, where its blocks are, how its weights are named.

The modules are those of transformers, under their own names, so that published weights load; what
is ours is only the walk over the blocks, with a merger between two of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from laco_deploy.model.towers.aimv2 import AIMV2
from laco_deploy.model.towers.base import TowerType
from laco_deploy.model.towers.internvit import INTERNVIT
from laco_deploy.model.towers.siglip import SIGLIP, SiglipTrunk
from laco_runtimes.errors import ConfigError

TOWERS: dict[str, TowerType] = {
    AIMV2.config_class.model_type: AIMV2,
    INTERNVIT.config_class.model_type: INTERNVIT,
    SIGLIP.config_class.model_type: SIGLIP,
}
"""Encoders by the `model_type` of their transformers configuration."""

_PUBLISHED = TOWERS | {name: tower for tower in TOWERS.values() for name in tower.published_types}


def find_tower(model_type: str) -> TowerType:
    """The encoder of a transformers vision configuration.

    Raises:
        ConfigError: no encoder of that `model_type` is known.
    """
    return _find(TOWERS, model_type)


def find_published_tower(model_type: str) -> TowerType:
    """The encoder in a published folder, whose `model_type` may be that of a larger model.

    Raises:
        ConfigError: no encoder of that `model_type` is known.
    """
    return _find(_PUBLISHED, model_type)


def _find(table: Mapping[str, TowerType], model_type: str) -> TowerType:
    if model_type not in table:
        near = difflib.get_close_matches(model_type, table, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"unknown vision encoder {model_type!r}. Known: {', '.join(sorted(table))}.{hint}"
        )
    return table[model_type]


__all__ = ["TOWERS", "SiglipTrunk", "TowerType", "find_published_tower", "find_tower"]
