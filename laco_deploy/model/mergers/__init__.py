"""Mergers: r x r neighbouring patch tokens become one, after any block of an encoder.

All take [B, H * W, C] to [B, H' * W', C], so that each can stand where another stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from laco_deploy.model.merger_spec import MergerKind, MergerSpec
from laco_deploy.model.mergers.avg_pool import AvgPoolMerger
from laco_deploy.model.mergers.base import Merger
from laco_deploy.model.mergers.c_abstractor import CAbstractorMerger
from laco_deploy.model.mergers.grid import fit_grid, space_to_channel, window_mean
from laco_deploy.model.mergers.init import OwnInit, ZeroInitLinear
from laco_deploy.model.mergers.laco import LacoMerger
from laco_deploy.model.mergers.ldpv2 import Ldpv2Merger
from laco_deploy.model.mergers.patch_merger import PatchMerger
from laco_deploy.model.mergers.token_packer import TokenPackerMerger

MERGERS: Mapping[MergerKind, type[Merger]] = {
    "laco": LacoMerger,
    "pixel_shuffle": LacoMerger,  # without the shortcut, which the spec decides
    "ldpv2": Ldpv2Merger,
    "token_packer": TokenPackerMerger,
    "avg_pool": AvgPoolMerger,
    "patch_merger": PatchMerger,
    "c_abstractor": CAbstractorMerger,
}
"""Merger kinds by the name used in a configuration."""


def build_merger(spec: MergerSpec, width: int, grid: tuple[int, int]) -> Merger:
    """Build the merger that `spec` names.

    Args:
        spec: which merger.
        width: C, the encoder's width.
        grid: (H, W) of the patches that come in; those that go out are `spec.merged_grid(grid)`.

    Raises:
        ConfigError: nothing is left of the grid.
    """
    return MERGERS[spec.kind](spec, width, grid)


__all__ = [
    "MERGERS",
    "LacoMerger",
    "Merger",
    "OwnInit",
    "ZeroInitLinear",
    "build_merger",
    "fit_grid",
    "space_to_channel",
    "window_mean",
]
