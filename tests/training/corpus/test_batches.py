"""The collator and the sampler."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laco_deploy.training.corpus import Broken, Collator, Encoded, LengthGroupedSampler
from laco_runtimes.errors import ConfigError
from tests.bundles import random_config, random_model

BAD = Broken("bad", "source", "why")


def encoded(*ids: int, tiles: int = 0, is_video: bool = False) -> Encoded:
    visual = {
        "pixels": torch.full((tiles, 3, 2, 2), float(ids[0])),
        "image_sizes": torch.tensor([[ids[0], 2]]),
        "num_tiles": torch.tensor([tiles]),
        "is_video": torch.tensor([is_video]),
    }
    return Encoded(
        name="n",
        source="s",
        ids=torch.tensor(ids),
        labels=torch.tensor([-100, *ids[1:]]),
        **(visual if tiles else {}),
    )


def test_a_batch_is_padded_on_the_right_and_visuals_are_laid_end_to_end() -> None:
    batch = Collator(9)([encoded(1, 2, 3, tiles=2), encoded(4, 5), encoded(6, tiles=1)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9], [6, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, 5, -100], [-100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1, 1, 6]
    assert batch["num_tiles"].tolist() == [2, 1]
    assert batch["image_sizes"].tolist() == [[1, 2], [6, 2]]
    assert "is_video" not in batch
    assert "broken" not in batch


def test_a_video_in_a_batch_is_marked_as_one() -> None:
    batch = Collator(9)([encoded(1, tiles=1), encoded(2, tiles=3, is_video=True)])
    assert batch["is_video"].tolist() == [False, True]


def test_a_batch_of_text_has_no_pixels() -> None:
    assert set(Collator(9)([encoded(1)])) == {"input_ids", "labels", "attention_mask"}


def test_broken_samples_are_left_out_and_listed() -> None:
    batch = Collator(9)([BAD, encoded(1, 2)])
    assert batch["input_ids"].tolist() == [[1, 2]]
    assert batch["broken"] == [BAD]


def test_a_batch_of_broken_samples_alone_can_still_be_stepped_on() -> None:
    batch = Collator(0)([BAD, BAD])
    assert batch.pop("broken") == [BAD, BAD]
    assert batch["labels"].tolist() == [[-100, -100]]
    loss = random_model(random_config(), 0)(**batch, num_items_in_batch=torch.tensor(5)).loss
    assert loss.item() == 0


lengths = st.lists(st.integers(-30, 30).filter(bool), min_size=1, max_size=60)


@settings(deadline=None)
@given(lengths=lengths, batch=st.integers(1, 9), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_every_sample_comes_once_and_batches_are_of_one_kind_and_sorted(
    lengths: list[int], batch: int, seed: int, epoch: int
) -> None:
    sampler = LengthGroupedSampler(lengths, batch, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) == list(range(len(sampler)))
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    with_images = sum(length > 0 for length in lengths)
    full = with_images // batch + (len(lengths) - with_images) // batch
    for number, members in enumerate(batches):
        found = [abs(lengths[i]) for i in members]
        assert found == sorted(found, reverse=True)
        if number < full:
            assert len({lengths[i] > 0 for i in members}) == 1
    again = LengthGroupedSampler(lengths, batch, seed)
    again.set_epoch(epoch)
    assert list(again) == order == list(sampler)


def test_epochs_and_seeds_differ_in_order() -> None:
    lengths = list(range(1, 101))
    orders = []
    for seed in (0, 1):
        sampler = LengthGroupedSampler(lengths, 4, seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders.append(tuple(sampler))
    assert len(set(orders)) == 4


def test_batches_are_drawn_from_all_lengths() -> None:
    """A batch of alike lengths alone would make steps of unlike noise."""
    sampler = LengthGroupedSampler(list(range(1, 1001)), 100, 0)
    first = list(sampler)[:100]
    assert max(first) - min(first) > 800


@pytest.mark.parametrize(("lengths", "batch"), [([], 1), ([1], 0)])
def test_nothing_to_put_in_batches_is_refused(lengths: list[int], batch: int) -> None:
    with pytest.raises(ConfigError, match="cannot be put in batches"):
        LengthGroupedSampler(lengths, batch)
