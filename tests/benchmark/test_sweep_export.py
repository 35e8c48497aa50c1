"""A point of a sweep, really exported: the trained weights with the merger elsewhere."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from laco_deploy.benchmark.sweep import SweepJob, prepare_sweep
from laco_deploy.benchmark.sweep_export import load_moved, move_merger, moved_config
from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.checkpoint import load_checkpoint
from laco_runtimes.engines import load_engine
from laco_runtimes.engines.base import LoadRequest
from laco_runtimes.errors import ArgumentError, ConfigError
from tests.bundles import RandomBundles

PIXELS = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def rebuilt(folder: Path, after_block: int) -> LacoForConditionalGeneration:
    """A model configured with the merger there, with the same weights."""
    trained = load_checkpoint(folder)
    values = copy.deepcopy(trained.config.to_dict())
    values["mergers"][0]["after_block"] = after_block
    model = LacoForConditionalGeneration(LacoConfig.from_dict(values)).eval()
    state = trained.model.state_dict()
    model.load_state_dict(
        {name.replace("mergers.1.", f"mergers.{after_block}."): one for name, one in state.items()}
    )
    return model


@pytest.mark.parametrize("after_block", [1, 2, 3])
def test_a_moved_merger_is_that_of_a_model_configured_so(
    bundle_for: RandomBundles, after_block: int
) -> None:
    checkpoint = load_checkpoint(bundle_for.checkpoint)
    move_merger(checkpoint.model, after_block)
    other = rebuilt(bundle_for.checkpoint, after_block)
    with torch.no_grad():
        torch.testing.assert_close(
            checkpoint.model.get_image_features(PIXELS), other.get_image_features(PIXELS)
        )
    assert [spec.after_block for spec in checkpoint.config.merger_specs] == [after_block]


def test_modules_of_a_moved_merger_have_their_baselines(bundle_for: RandomBundles) -> None:
    modules = load_moved(bundle_for.checkpoint, ("uncompressed", "downsampled"), 2)
    tokens = {
        name: encoder.get_image_features(PIXELS).shape[1]
        for name, encoder in modules.encoders.items()
    }
    assert tokens == {"laco": 16, "uncompressed": 64, "downsampled": 16}


def test_a_merger_is_moved_inside_the_encoder_and_alone(bundle_for: RandomBundles) -> None:
    config = load_checkpoint(bundle_for.checkpoint).config
    with pytest.raises(ConfigError, match="after_block is 4"):
        moved_config(config, 4)
    none = LacoConfig.from_dict({**config.to_dict(), "mergers": []})
    with pytest.raises(ArgumentError, match="the checkpoint has 0"):
        moved_config(none, 1)


def test_a_point_is_a_bundle_that_runs_and_says_what_it_is(
    bundle_for: RandomBundles, tmp_path: Path
) -> None:
    job = SweepJob(
        checkpoint=bundle_for.checkpoint,
        target="onnxruntime",
        axes={"after_block": ("2",), "precision": ("fp32",)},
        cache=tmp_path / "cache",
        baselines=("downsampled",),
    )
    found = prepare_sweep(job)
    assert found.failed == {}
    laco, downsampled = found.entrants
    assert laco.variant.latency_only
    assert [one.after_block for one in laco.variant.mergers] == [2]
    manifest = laco.bundle.manifest
    assert manifest.unverified is not None
    stated = json.loads((laco.bundle.root / "config.json").read_text())
    assert [one["after_block"] for one in stated["mergers"]] == [2]
    model = rebuilt(bundle_for.checkpoint, 2)
    with torch.no_grad():
        expected = model.get_image_features(PIXELS).numpy()
    for entrant in (laco, downsampled):
        request = LoadRequest(laco.bundle.root, manifest, entrant.variant, "cpu", 1)
        features = load_engine(request).vision.encode(PIXELS.numpy())
        assert features.shape == expected.shape
        if entrant is laco:
            np.testing.assert_allclose(features, expected, atol=1e-3)
    assert len(list((tmp_path / "cache").iterdir())) == 1
