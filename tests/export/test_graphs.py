"""The wrappers compute what transformers computes; baselines are the models they claim to be."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from laco_deploy.baselines import BASELINES, baseline_encoder
from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.checkpoint import Checkpoint
from laco_export.graphs import DecoderGraph
from laco_export.job import ExportJob
from tests.bundles import IMAGE_SIZE, random_config, random_model
from tests.export.passes import Floats, conversation, largest_difference

PIXELS = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decoder(job: ExportJob) -> DecoderGraph:
    facts, modules = job.language, job.load()
    return DecoderGraph(
        modules.body, modules.head, head_dim=facts.head_dim, rope_theta=job.rope_theta
    ).eval()


def test_decoder_is_transformers_qwen2_in_prefill_and_steps_with_padding(
    decoder: DecoderGraph, checkpoint: Checkpoint, job: ExportJob
) -> None:
    empty = torch.zeros(2, job.language.kv_heads, 0, job.language.head_dim)
    cache = [empty] * (2 * job.language.layers)

    def decode(embeds: Floats, mask: NDArray[np.int64], positions: NDArray[np.int64]) -> Floats:
        inputs = (torch.from_numpy(array) for array in (embeds, mask, positions))
        with torch.no_grad():
            logits, *cache[:] = decoder(*inputs, *cache)
        assert logits.shape[1] == 1
        return logits[:, 0].numpy()

    assert largest_difference(conversation(checkpoint.model), decode) < 1e-4
    assert cache[0].shape[2] == 12


def test_a_row_of_nothing_but_padding_gives_numbers(decoder: DecoderGraph, job: ExportJob) -> None:
    facts = job.language
    past = [torch.zeros(1, facts.kv_heads, 0, facts.head_dim)] * (2 * facts.layers)
    with torch.no_grad():
        logits, *_ = decoder(
            torch.randn(1, 4, facts.hidden_size),
            torch.zeros(1, 4, dtype=torch.int64),
            torch.zeros(1, 4, dtype=torch.int64),
            *past,
        )
    assert logits.isfinite().all()


def rebuilt(checkpoint: Checkpoint, after_block: int | None) -> LacoForConditionalGeneration:
    """The same weights in a model of its own whose merger stands elsewhere, or nowhere."""
    values = copy.deepcopy(checkpoint.config.to_dict())
    values["mergers"] = [] if after_block is None else [{"after_block": after_block}]
    model = LacoForConditionalGeneration(LacoConfig.from_dict(values)).eval()
    weights = {
        name.replace("mergers.1.", f"mergers.{after_block}."): weight
        for name, weight in checkpoint.model.state_dict().items()
        if after_block is not None or "mergers" not in name
    }
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize(("name", "after_block"), [("uncompressed", None), ("external", 3)])
def test_a_baseline_is_the_model_configured_that_way(
    checkpoint: Checkpoint, name: str, after_block: int | None
) -> None:
    baseline = BASELINES[name](checkpoint.config)
    encoder = baseline_encoder(name, checkpoint.config, checkpoint.model)
    model = rebuilt(checkpoint, after_block)
    with torch.no_grad():
        features = encoder.get_image_features(PIXELS)
        torch.testing.assert_close(features, model.get_image_features(PIXELS))
    assert baseline.merged_grid == model.config.merged_grid
    assert features.shape[1] == baseline.tokens_per_tile
    assert [one.after_block for one in baseline.mergers] == ([after_block] if after_block else [])


def test_external_applies_several_mergers_in_order() -> None:
    config = random_config()
    values = {**config.to_dict(), "mergers": [{"after_block": 1}, {"after_block": 2}]}
    model = random_model(LacoConfig.from_dict(values), seed=0)
    external = BASELINES["external"](model.config)
    moved = baseline_encoder("external", model.config, model)
    encoder = model.model.vision_encoder
    with torch.no_grad():
        tokens = encoder.tower(PIXELS).last_hidden_state
        tokens = encoder.mergers["2"](encoder.mergers["1"](tokens))
        expected = model.model.projector(tokens)
        torch.testing.assert_close(moved.get_image_features(PIXELS), expected)
    assert external.merged_grid == (2, 2)
    assert [one.after_block for one in external.mergers] == [3, 3]


def test_baselines_share_the_weights_of_the_model(checkpoint: Checkpoint) -> None:
    own = {weight.data_ptr() for weight in checkpoint.model.parameters()}
    for name in BASELINES:
        encoder = baseline_encoder(name, checkpoint.config, checkpoint.model)
        foreign = [
            part for part, weight in encoder.named_parameters() if weight.data_ptr() not in own
        ]
        # Positions of a smaller image are its own.
        assert all("position_embedding" in part for part in foreign), name
        assert len(foreign) == (name == "downsampled")
