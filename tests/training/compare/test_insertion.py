"""A merger goes into a trained model, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from laco_deploy.training.compare.cells import METHODS, Cell
from laco_deploy.training.compare.insertion import insert
from laco_deploy.training.compare.pretrain import Workshop, guesses
from laco_deploy.training.dataset import Sample, Turn


def cell(kind: str, **settings: object) -> Cell:
    return Cell(kind=kind, after_block=1, seed=0, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "shortcut"), METHODS)
def test_all_other_weights_are_those_of_the_base(
    workshop: Workshop, kind: str, shortcut: str | None
) -> None:
    base = workshop.checkpoint.model
    model = insert(base, cell(kind, shortcut=shortcut).mergers, 0)
    assert model.config.tokens_per_tile * 4 == base.config.tokens_per_tile
    own = model.state_dict()
    for name, weight in base.state_dict().items():
        assert torch.equal(own[name], weight), name
    for name in set(own) - set(base.state_dict()):
        assert ".mergers.1." in name


def test_fresh_laco_is_average_pooling(workshop: Workshop) -> None:
    pixels = workshop.pictures.batch([0, 1], 16)["pixel_values"]
    laco, pool = (
        insert(workshop.checkpoint.model, cell(kind).mergers, 0) for kind in ("laco", "avg_pool")
    )
    with torch.no_grad():
        assert torch.equal(laco.get_image_features(pixels), pool.get_image_features(pixels))


def test_pixel_shuffle_with_the_shortcut_is_laco_but_for_the_start_of_its_last_layer(
    workshop: Workshop,
) -> None:
    base = workshop.checkpoint.model
    laco = insert(base, cell("laco").mergers, 0)
    other = insert(base, cell("pixel_shuffle", shortcut="window_mean").mergers, 0)
    last = "model.vision_encoder.mergers.1.linear_2.weight"
    mine, its = laco.state_dict(), other.state_dict()
    assert [name for name in mine if not torch.equal(mine[name], its[name])] == [last]
    assert float(its[last].std()) > 0
    its[last].zero_()
    pixels = workshop.pictures.batch([0], 16)["pixel_values"]
    with torch.no_grad():
        assert torch.equal(laco.get_image_features(pixels), other.get_image_features(pixels))


@pytest.mark.parametrize("kind", ["pixel_shuffle", "token_packer", "ldpv2"])
def test_fresh_mergers_are_as_loud_as_published_ones_are_in_a_wide_encoder(
    workshop: Workshop, kind: str
) -> None:
    model = insert(workshop.checkpoint.model, cell(kind).mergers, 0)
    width = model.config.vision.hidden_size
    weight = model.state_dict()["model.vision_encoder.mergers.1.linear_1.weight"]
    assert float(weight.std()) == pytest.approx(0.02 * (1024 / width) ** 0.5, rel=0.1)


def test_the_seed_decides_a_fresh_merger(workshop: Workshop) -> None:
    name = "model.vision_encoder.mergers.1.linear_1.weight"
    first, again, other = (
        insert(workshop.checkpoint.model, cell("pixel_shuffle").mergers, seed).state_dict()[name]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_guesses_know_the_tasks_and_not_the_pictures() -> None:
    def sample(task: str, answer: str) -> Sample:
        return Sample(Path("x.png"), (Turn("?", answer),), "digits", (task,))

    train = [sample("read", "1"), sample("read", "1"), sample("read", "2"), sample("count", "3")]
    test = [sample("read", "1"), sample("read", "2"), sample("count", "3"), sample("new", "4")]
    scores = {score.task: (score.correct, score.total) for score in guesses(train, test)}
    assert scores == {"read": (1, 2), "count": (1, 1), "new": (0, 1)}
