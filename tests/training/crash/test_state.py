"""Optimizer state and random numbers come back from files to the bit."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from laco_deploy.training.snapshots import folder, rng, tensors
from laco_deploy.training.snapshots.folder import Snapshot
from laco_runtimes.errors import CheckpointError

OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.95)),
    "adamw amsgrad": lambda groups: torch.optim.AdamW(groups, amsgrad=True),
    "sgd with momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
}


def through_files(values: dict[str, Tensor], rest: Any) -> tuple[dict[str, Tensor], Any]:
    with TemporaryDirectory() as place:
        folder.write_tensors(Path(place) / "x.safetensors", values)
        folder.write_json(Path(place) / "x.json", rest)
        snapshot = Snapshot(Path(place), 0)
        return snapshot.read_tensors("x.safetensors"), snapshot.read_json("x.json")


def network() -> nn.Module:
    """With a tied weight, a frozen one, a scalar and one that gets no gradient."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "inner": nn.Linear(4, 4), "head": nn.Linear(4, 5)}
    )
    model["head"].weight = model["embed"].weight
    model["head"].bias.requires_grad_(False)
    model.scale = nn.Parameter(torch.tensor(1.0))
    model.unused = nn.Parameter(torch.ones(3))
    return model


def make_groups(model: nn.Module) -> list[dict[str, Any]]:
    learning = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": learning[1:], "lr": 0.01, "name": "rest"},
        {"params": learning[:1], "lr": 0.1 / 3, "name": "first"},
    ]


def step(model: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    ids = torch.randint(0, 5, (6,), generator=torch.Generator().manual_seed(seed))
    hidden = model["inner"](model["embed"](ids)) * model.scale
    model["head"](hidden).logsumexp(-1).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_same(left: Any, right: Any) -> None:
    """The same types and bits all the way down."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right


@settings(deadline=None, max_examples=20)
@given(
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    before=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_an_optimizer_goes_on_to_the_bit(kind: str, before: int, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    optimizer = OPTIMIZERS[kind](make_groups(model))
    for seed in range(before):
        step(model, optimizer, seed)
    values, rest = tensors.optimizer_state(model, optimizer)
    values, rest = through_files(tensors.gather(values, here=True), rest)
    weights = tensors.gather(tensors.model_tensors(model), here=True)
    weights, _ = through_files(weights, None)

    other = network().to(dtype)
    again = OPTIMIZERS[kind](make_groups(other))
    tensors.load_model(other, weights)
    tensors.load_optimizer(other, again, values, rest)
    assert_same(again.state_dict(), optimizer.state_dict())
    for seed in range(10, 13):
        step(model, optimizer, seed)
        step(other, again, seed)
    for (name, left), right in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right), name


def test_a_parameter_without_gradient_keeps_having_no_state() -> None:
    """Adam counts the steps of each parameter; one too many shifts its bias correction."""
    model = network()
    optimizer = torch.optim.AdamW(make_groups(model))
    step(model, optimizer, 0)
    values, rest = tensors.optimizer_state(model, optimizer)
    assert not [name for name in values if name.startswith("unused")]
    other = network()
    again = torch.optim.AdamW(make_groups(other))
    tensors.load_optimizer(other, again, values, rest)
    assert other.unused not in again.state  # type: ignore[comparison-overlap]


def test_other_groups_and_other_models_are_refused() -> None:
    model = network()
    optimizer = torch.optim.AdamW(make_groups(model))
    step(model, optimizer, 0)
    values, rest = tensors.optimizer_state(model, optimizer)
    other = torch.optim.AdamW(make_groups(model)[::-1])
    with pytest.raises(CheckpointError, match="other parameter groups"):
        tensors.load_optimizer(model, other, values, rest)
    weights = tensors.gather(tensors.model_tensors(model), here=True)
    with pytest.raises(CheckpointError, match=r"of another model: inner\.bias"):
        tensors.load_model(model, {**weights, "inner.bias": torch.zeros(9)})
    del weights["inner.weight"]
    with pytest.raises(CheckpointError, match=r"of another model: inner\.weight"):
        tensors.load_model(model, weights)
    with pytest.raises(CheckpointError, match="not the model's"):
        tensors.optimizer_state(nn.Linear(2, 2), optimizer)


def draw_everything() -> list[Any]:
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.random(),
        np.random.standard_normal(),
        torch.rand(3).tolist(),
        torch.randn(1).item(),
    ]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), drawn=st.integers(0, 3), odd=st.booleans())
def test_random_numbers_go_on_to_the_bit(seed: int, drawn: int, odd: bool) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for _ in range(drawn):
        draw_everything()
    if odd:  # both keep the second of two normal numbers for the next call
        random.gauss(0, 1)
        np.random.standard_normal()
    state = through_files(*rng.rng_state())
    expected = [draw_everything(), draw_everything()]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    rng.restore_rng(*state)
    assert [draw_everything(), draw_everything()] == expected
