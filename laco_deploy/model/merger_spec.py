"""`MergerSpec`: which merger stands where in an encoder, with every setting in force."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from laco_runtimes.errors import ConfigError

MergerKind = Literal[
    "laco", "pixel_shuffle", "ldpv2", "token_packer", "avg_pool", "patch_merger", "c_abstractor"
]
MergerShortcut = Literal["window_mean", "none"]
MergerNorm = Literal["layer_norm", "none"]
OddGrid = Literal["replicate", "crop"]

RATIOS = (2, 3, 4)

NORM_OF_KIND: dict[str, MergerNorm] = {"laco": "layer_norm", "pixel_shuffle": "layer_norm"}
"""Kinds whose normalisation can be chosen, and what they take unasked. The norms of the others
belong to the published module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergerSpec:
    """One merger of an encoder.

    `shortcut` and `norm` may be left out; they then read as what the kind does of itself, so that
    a saved configuration names what was in force.

    Raises:
        ConfigError: an unknown name, a number out of range, or a setting the kind has not.
    """

    after_block: int
    """k, counted from 1: the merger stands between block k and block k + 1. k = number of blocks
    puts it behind the encoder, after its final norm ("LaCo@1" in the paper)."""
    kind: MergerKind = "laco"
    ratio: int = 2
    """r: r x r patches become one token."""
    shortcut: MergerShortcut | None = None
    """Whether the mean of the window is added to the output. `laco` adds it of itself, the others
    do not; `avg_pool` is that mean."""
    norm: MergerNorm | None = None
    """Normalisation at the head of the MLP branch of `laco` and `pixel_shuffle`; None for the other
    kinds. The shortcut is never normalised."""
    odd_grid: OddGrid = "replicate"
    """What to do where r does not divide a side: repeat the last row or column until it does, or
    cut off the rest."""

    def __post_init__(self) -> None:
        _check_name("kind", self.kind, get_args(MergerKind))
        _check_name("odd_grid", self.odd_grid, get_args(OddGrid))
        _check_number("after_block", self.after_block)
        if self.after_block < 1:
            raise ConfigError(
                f"merger after_block is {self.after_block}. Blocks are counted from 1."
            )
        _check_number("ratio", self.ratio)
        if self.ratio not in RATIOS:
            raise ConfigError(f"merger ratio is {self.ratio}. It must be at least 2 and at most 4.")
        self._settle_shortcut()
        self._settle_norm()

    def _settle_shortcut(self) -> None:
        if self.shortcut is None:
            own: MergerShortcut = "window_mean" if self.kind == "laco" else "none"
            object.__setattr__(self, "shortcut", own)
        _check_name("shortcut", self.shortcut, get_args(MergerShortcut))
        if self.kind == "avg_pool" and self.shortcut == "window_mean":
            raise ConfigError(
                "merger avg_pool is the mean of the window itself, so it takes no window_mean "
                "shortcut. Leave shortcut out."
            )

    def _settle_norm(self) -> None:
        if self.kind in NORM_OF_KIND:
            if self.norm is None:
                object.__setattr__(self, "norm", NORM_OF_KIND[self.kind])
            _check_name("norm", self.norm, get_args(MergerNorm))
        elif self.norm is not None:
            raise ConfigError(
                f"merger {self.kind} has no choice of norm, but norm is {self.norm!r}. "
                f"Leave it out; {' and '.join(NORM_OF_KIND)} take one."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MergerSpec:
        """Read one entry of `config.json`.

        Raises:
            ConfigError: an unknown key, or no `after_block`, besides what the fields refuse.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            _check_name("setting", key, known)
        if "after_block" not in values:
            raise ConfigError(
                "a merger has no after_block. Name the block it stands behind, counted from 1."
            )
        return cls(**values)

    def merged_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(H', W') of the tokens that come out for a patch grid (H, W).

        Raises:
            ConfigError: nothing is left of the grid, or nothing of it can be merged.
        """
        height, width = grid
        if self.odd_grid == "crop":
            merged = height // self.ratio, width // self.ratio
        else:
            merged = -(-height // self.ratio), -(-width // self.ratio)
        if min(merged) < 1 or merged == grid:
            raise ConfigError(
                f"a {height}x{width} patch grid is too small for {self.ratio}x{self.ratio} windows "
                f"({self.odd_grid}). Choose a smaller ratio, fewer mergers or a larger image."
            )
        return merged


def _check_name(what: str, value: object, known: tuple[str, ...] | list[str]) -> None:
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown merger {what} {value!r}. Known: {', '.join(known)}.{hint}")


def _check_number(what: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"merger {what} is {value!r}. It must be a whole number.")


__all__ = ["RATIOS", "MergerKind", "MergerNorm", "MergerShortcut", "MergerSpec", "OddGrid"]
