"""`MergerSpec`: what a configuration may say of a merger, and what it says where it is silent."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import pytest

from laco_deploy.model.merger_spec import MergerKind, MergerSpec
from laco_deploy.model.mergers import MERGERS
from laco_runtimes.errors import ConfigError


def test_every_kind_that_may_be_named_can_be_built() -> None:
    assert set(MERGERS) == set(get_args(MergerKind))


@pytest.mark.parametrize(
    ("kind", "shortcut", "norm"),
    [
        ("laco", "window_mean", "layer_norm"),
        ("pixel_shuffle", "none", "layer_norm"),
        ("ldpv2", "none", None),
        ("token_packer", "none", None),
        ("avg_pool", "none", None),
        ("patch_merger", "none", None),
        ("c_abstractor", "none", None),
    ],
)
def test_silence_means_what_the_published_module_does(
    kind: MergerKind, shortcut: str, norm: str | None
) -> None:
    spec = MergerSpec(after_block=1, kind=kind)
    assert (spec.shortcut, spec.norm) == (shortcut, norm)


@pytest.mark.parametrize("kind", get_args(MergerKind))
def test_a_saved_spec_names_every_setting_and_comes_back(kind: MergerKind) -> None:
    spec = MergerSpec(after_block=3, kind=kind, ratio=3, odd_grid="crop")
    saved = asdict(spec)
    assert list(saved) == ["after_block", "kind", "ratio", "shortcut", "norm", "odd_grid"]
    assert saved["shortcut"] is not None
    assert MergerSpec.from_dict(saved) == spec


def test_a_spec_of_the_first_version_reads_as_it_did() -> None:
    old = {"after_block": 1, "kind": "laco", "norm": "layer_norm", "ratio": 2}
    assert MergerSpec.from_dict(old) == MergerSpec(
        after_block=1, shortcut="window_mean", norm="layer_norm", odd_grid="replicate"
    )


@pytest.mark.parametrize("kind", [kind for kind in get_args(MergerKind) if kind != "avg_pool"])
def test_the_shortcut_can_be_chosen_for_any_kind(kind: MergerKind) -> None:
    on = MergerSpec(after_block=1, kind=kind, shortcut="window_mean")
    off = MergerSpec(after_block=1, kind=kind, shortcut="none")
    assert (on.shortcut, off.shortcut) == ("window_mean", "none")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "pixelshuffle"}, "unknown merger kind.*Did you mean 'pixel_shuffle'"),
        ({"kind": "c_abstractr"}, "Did you mean 'c_abstractor'"),
        ({"kind": 7}, "unknown merger kind 7. Known: laco, pixel_shuffle, "),
        ({"shortcut": "windowmean"}, "unknown merger shortcut.*Did you mean 'window_mean'"),
        ({"shortcut": False}, "unknown merger shortcut False"),
        ({"norm": "layernorm"}, "unknown merger norm.*Did you mean 'layer_norm'"),
        ({"odd_grid": "replicat"}, "unknown merger odd_grid.*Did you mean 'replicate'"),
        ({"short_cut": "none"}, "unknown merger setting.*Did you mean 'shortcut'"),
        ({"kind": "avg_pool", "shortcut": "window_mean"}, "avg_pool is the mean of the window"),
        ({"kind": "ldpv2", "norm": "layer_norm"}, "ldpv2 has no choice of norm"),
        ({"kind": "patch_merger", "norm": "none"}, "patch_merger has no choice of norm"),
        ({"ratio": 1}, "ratio is 1. It must be at least 2 and at most 4"),
        ({"ratio": 5}, "ratio is 5. It must be at least 2 and at most 4"),
        ({"ratio": 2.0}, "ratio is 2.0. It must be a whole number"),
        ({"ratio": True}, "ratio is True. It must be a whole number"),
        ({"after_block": 0}, "after_block is 0. Blocks are counted from 1"),
        ({"after_block": "6"}, "after_block is '6'. It must be a whole number"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MergerSpec.from_dict({"after_block": 1, **values})


def test_a_merger_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="a merger has no after_block"):
        MergerSpec.from_dict({"kind": "laco"})


@pytest.mark.parametrize(
    ("grid", "ratio", "replicate", "crop"),
    [
        ((32, 32), 2, (16, 16), (16, 16)),
        ((24, 24), 2, (12, 12), (12, 12)),
        ((27, 27), 2, (14, 14), (13, 13)),
        ((27, 27), 3, (9, 9), (9, 9)),
        ((27, 27), 4, (7, 7), (6, 6)),
        ((32, 32), 3, (11, 11), (10, 10)),
        ((5, 8), 4, (2, 2), (1, 2)),
    ],
)
def test_the_merged_grid_rounds_up_when_replicating_and_down_when_cropping(
    grid: tuple[int, int], ratio: int, replicate: tuple[int, int], crop: tuple[int, int]
) -> None:
    assert MergerSpec(after_block=1, ratio=ratio).merged_grid(grid) == replicate
    assert MergerSpec(after_block=1, ratio=ratio, odd_grid="crop").merged_grid(grid) == crop


def test_a_grid_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3x8 patch grid is too small for 4x4 windows \(crop\)"):
        MergerSpec(after_block=1, ratio=4, odd_grid="crop").merged_grid((3, 8))
    with pytest.raises(ConfigError, match="1x1 patch grid is too small for 2x2"):
        MergerSpec(after_block=1).merged_grid((1, 1))
