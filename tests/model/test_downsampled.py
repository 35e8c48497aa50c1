"""The baseline on a smaller image: the tower as it would be configured for that image size."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from laco_deploy.baselines import BASELINES, baseline_encoder
from laco_deploy.downsampled import POSITIONS, downsampling, resample
from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.towers import TOWERS
from laco_runtimes.errors import ConfigError
from tests.model.tower_samples import KINDS, laco_config, randomize

MERGER = [{"after_block": 1}]


def model_of(tower: str) -> LacoForConditionalGeneration:
    return randomize(LacoForConditionalGeneration(laco_config(tower, MERGER)))


def rebuilt(model: LacoForConditionalGeneration) -> LacoForConditionalGeneration:
    """A model of its own for the smaller image, with the same weights and resampled positions."""
    config = model.config
    values = copy.deepcopy(config.to_dict())
    grid = config.merged_grid
    size = grid[0] * 7  # pixels of a patch
    whole = values["vision_config"]["image_size"]
    values["vision_config"]["image_size"] = size if isinstance(whole, int) else [size, size]
    values["mergers"] = []
    smaller = LacoForConditionalGeneration(LacoConfig.from_dict(values)).eval()
    state = {name: one for name, one in model.state_dict().items() if ".mergers." not in name}
    for name in state:
        if "position_embedding" in name:
            learned = state[name].reshape(-1, state[name].shape[-1])  # CLS first, where there is
            prefix = len(learned) - config.patch_grid[0] * config.patch_grid[1]
            fitted = resample(learned[prefix:], config.patch_grid, grid)
            state[name] = torch.cat([learned[:prefix], fitted]).reshape(
                *state[name].shape[:-2], -1, state[name].shape[-1]
            )
    smaller.load_state_dict(state)
    return smaller


@pytest.mark.parametrize("tower", KINDS)
def test_it_is_the_model_configured_for_the_smaller_image(tower: str) -> None:
    model = model_of(tower)
    config = model.config
    encoder = baseline_encoder("downsampled", config, model)
    pixels = torch.rand(2, 3, config.image_size, config.image_size)
    other = rebuilt(model)
    size = other.config.image_size
    smaller = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    with torch.no_grad():
        features = encoder.get_image_features(pixels)
        torch.testing.assert_close(features, other.get_image_features(smaller))
    source = BASELINES["downsampled"](config)
    assert features.shape[1] == source.tokens_per_tile == config.tokens_per_tile
    assert source.mergers == ()


def test_every_tower_has_positions_that_can_be_resampled() -> None:
    assert set(POSITIONS) == set(TOWERS)


def test_a_tower_without_known_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(POSITIONS, "siglip_vision_model")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'siglip_vision_model' cannot be resampled.*aimv2"):
        BASELINES["downsampled"](laco_config("siglip_vision_model", MERGER))


@pytest.mark.parametrize("tower", KINDS)
def test_the_trained_model_stays_as_it_is(tower: str) -> None:
    model = model_of(tower)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    shapes = {name: one.data_ptr() for name, one in model.named_parameters()}
    encoder = baseline_encoder("downsampled", model.config, model)
    for name, one in model.state_dict().items():
        torch.testing.assert_close(one, before[name])
    assert {name: one.data_ptr() for name, one in model.named_parameters()} == shapes
    own = set(shapes.values())
    foreign = [name for name, one in encoder.named_parameters() if one.data_ptr() not in own]
    assert foreign
    assert all("position_embedding" in name for name in foreign)


def test_scaling_by_matrices_is_an_area_of_pixels_each() -> None:
    found = downsampling(8, 4)
    assert found.shape == (8, 4)
    torch.testing.assert_close(found.sum(0), torch.ones(4))
    even = torch.arange(8.0) @ downsampling(8, 4)
    middle: Tensor = even[1:-1]
    torch.testing.assert_close(middle, torch.tensor([2.5, 4.5]))
