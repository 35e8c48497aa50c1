"""Which parameters learn, and at which rate: on a real model of each encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.training.parts import Part, parameter_groups, part_of
from laco_runtimes.errors import ConfigError
from tests.model.tower_samples import KINDS, laco_config, pixels, randomize

STAGE_1: dict[Part, float] = {"projector": 1e-3, "merger": 1e-3}
STAGE_2: dict[Part, float] = {
    "tower": 2e-6,
    "merger": 1e-5,
    "projector": 1e-5,
    "language_model": 1e-5,
}
MERGERS = [{"after_block": 1}, {"after_block": 3, "kind": "token_packer"}]


def make(kind: str, *, newline: bool = False) -> LacoForConditionalGeneration:
    config = laco_config(kind, MERGERS)
    config.image_newline = newline
    return randomize(LacoForConditionalGeneration(config))


def rates(model: LacoForConditionalGeneration, groups: list[dict[str, Any]]) -> dict[str, float]:
    by_id = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    return {name: by_id.get(id(weight), 0.0) for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_mergers_have_a_rate_of_their_own(kind: str) -> None:
    """H2. Put back (everything below `vision_encoder` at the tower's rate) mergers are at 2e-6."""
    model = make(kind)
    found = rates(model, parameter_groups(model, STAGE_2))
    assert all(weight.requires_grad for weight in model.parameters())
    for name, rate in found.items():
        if ".mergers." in name:
            assert rate == 1e-5, name
        elif ".tower." in name:
            assert rate == 2e-6, name
        else:
            assert rate == 1e-5, name
    assert {rate for name, rate in found.items() if ".mergers." in name} == {1e-5}
    assert 2e-6 in found.values()


@pytest.mark.parametrize("kind", KINDS)
def test_stage_one_trains_projector_and_mergers_and_nothing_else(kind: str) -> None:
    """H2 again: a merger that counts as part of the frozen tower would not learn at all."""
    model = make(kind)
    groups = parameter_groups(model, STAGE_1)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == {
        name for name, _ in model.named_parameters() if ".mergers." in name or ".projector." in name
    }
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    image = model.config.image_token_id
    tokens = model.config.tokens_per_tile
    ids = torch.tensor([[5, *[image] * tokens, 6, 7]])
    labels = ids.masked_fill(ids == image, -100)
    model(input_ids=ids, pixel_values=pixels(model.config.vision, 1), labels=labels).loss.backward()
    optimizer.step()
    changed = {
        name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])
    }
    assert changed <= learning
    for number in ("1", "3"):
        assert any(f".mergers.{number}." in name for name in changed)
    assert any(".projector." in name for name in changed)


def test_every_parameter_is_in_one_group() -> None:
    model = make("aimv2_vision_model", newline=True)
    groups = parameter_groups(model, STAGE_2)
    ids = [id(weight) for group in groups for weight in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    newline = model.model.image_newline
    assert [g["name"] for g in groups if any(w is newline for w in g["params"])] == [
        "language_model"
    ]


def test_a_part_without_parameters_makes_no_group() -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1, "kind": "avg_pool"}])
    groups = parameter_groups(LacoForConditionalGeneration(config), STAGE_2)
    assert [group["name"] for group in groups] == ["tower", "projector", "language_model"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown part 'vision'.*tower, merger"):
        parameter_groups(torch.nn.Linear(1, 1), {"vision": 1e-3})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="belongs to no part"):
        part_of("model.audio.weight")
