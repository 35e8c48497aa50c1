"""Work of the stages from a bundle's facts, held against the model's own modules."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import nn

from laco_deploy.baselines import BASELINES
from laco_deploy.benchmark.limits import RequestShape, stage_work, variant_limits
from laco_deploy.benchmark.limits_schema import LIMITED_STAGES, MachineRates
from laco_deploy.model import LacoConfig
from laco_deploy.model.cost import empty_model, formula_operations
from laco_deploy.model.manifest_facts import language_facts, merger_facts, vision_facts
from laco_deploy.model.merger_spec import MergerKind
from laco_deploy.model.mergers import build_merger
from laco_deploy.model.towers import TOWERS
from laco_deploy.operations import PREFIX_TOKENS, merger_weights
from laco_export.job import VariantSource
from laco_runtimes.errors import ArgumentError, BundleError
from laco_runtimes.images import Preprocessing
from laco_runtimes.manifest import FORMAT_VERSION, BundleFacts, Variant
from laco_runtimes.prompt import PromptTemplate
from tests.model.tower_samples import KINDS, laco_config

REQUEST = RequestShape(tiles=2, prompt_tokens=40, new_tokens=21)
RATES = MachineRates(
    matrix_gflops={"fp32": 100.0, "bf16": 400.0}, memory_gb_per_s=50.0, threads=None, notes=()
)


def facts_of(
    config: LacoConfig, root: Path, precision: str = "fp32", source: VariantSource | None = None
) -> BundleFacts:
    """What a bundle of this model states, with its `config.json` in a folder."""
    (root / "config.json").write_text(json.dumps(config.to_dict()))
    source = source or VariantSource("laco", merger_facts(config), config.merged_grid)
    template = PromptTemplate(
        system=(1,), user_open=(1,), after_image=(1,), user_close=(1,), assistant_close=(1,),
        stop=(2,), image_token_id=3,
    )  # fmt: skip
    return BundleFacts(
        format_version=FORMAT_VERSION,
        created_by="laco-deploy (tests)",
        target="onnxruntime",
        precision=dict.fromkeys(("vision_encoder", "embed_tokens", "decoder"), precision),
        language=language_facts(config),
        vision=vision_facts(config),
        preprocessing=Preprocessing(image_size=config.image_size, mean=(0.5,) * 3, std=(0.5,) * 3),
        prompt=template,
        embed_tokens="e.onnx",
        decoder="d.onnx",
        variants=(
            Variant(
                name="laco",
                mergers=source.mergers,
                merged_grid=source.merged_grid,
                vision_encoder="v.onnx",
                latency_only=False,
            ),
        ),
        parity=None,
        unverified="nobody asked",
        versions={},
    )


@pytest.mark.parametrize("mergers", [[], [(1, "replicate")], [(1, "replicate"), (3, "crop")]])
@pytest.mark.parametrize("tower", KINDS)
def test_operations_are_those_of_the_model(
    tower: str, mergers: list[tuple[int, str]], tmp_path: Path
) -> None:
    config = laco_config(tower, [{"after_block": k, "odd_grid": odd} for k, odd in mergers])
    facts = facts_of(config, tmp_path)
    work = stage_work(tmp_path, facts, facts.variants[0], REQUEST)
    whole = formula_operations(config)
    assert work["vision_encode"].operations == 2 * (whole.encoder + whole.projector)
    head = 2 * config.text.hidden_size * config.text.vocab_size
    text = {**config.to_dict()["text_config"]}
    assert text["num_hidden_layers"] == 1
    few = RequestShape(tiles=1, prompt_tokens=config.tokens_per_tile, new_tokens=1)
    prefill = stage_work(tmp_path, facts, facts.variants[0], few)["prefill"]
    assert prefill.operations == whole.prefill + head
    assert work["embed"].operations == 0


@pytest.mark.parametrize("name", ["uncompressed", "external"])
def test_a_baseline_has_the_operations_of_its_own_model(name: str, tmp_path: Path) -> None:
    config = laco_config("siglip_vision_model", [{"after_block": 1, "odd_grid": "crop"}])
    source = BASELINES[name](config)
    facts = facts_of(config, tmp_path, source=source)
    mergers = [{"after_block": 3, "odd_grid": "crop"}] if source.mergers else []
    own = formula_operations(laco_config("siglip_vision_model", mergers))
    work = stage_work(tmp_path, facts, facts.variants[0], replace(REQUEST, tiles=1))
    assert work["vision_encode"].operations == own.encoder + own.projector


def test_the_downsampled_encoder_has_the_operations_of_a_smaller_image(tmp_path: Path) -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1}])
    facts = facts_of(config, tmp_path, source=BASELINES["downsampled"](config))
    own = formula_operations(laco_config("aimv2_vision_model", [], image_size=28))
    work = stage_work(tmp_path, facts, facts.variants[0], replace(REQUEST, tiles=1))
    scaling = 2 * 3 * (56 * 56 * 28 + 28 * 56 * 28)  # columns of all rows, then rows
    assert work["vision_encode"].operations == own.encoder + own.projector + scaling


@pytest.mark.parametrize("tower", KINDS)
def test_bytes_are_at_least_the_weights_of_the_matrices_and_not_much_more(
    tower: str, tmp_path: Path
) -> None:
    config = laco_config(tower, [{"after_block": 1}])
    model = empty_model(config)
    facts = facts_of(config, tmp_path)
    work = stage_work(tmp_path, facts, facts.variants[0], replace(REQUEST, tiles=1))

    def matrices(module: nn.Module) -> int:
        return sum(
            4 * one.weight.numel()
            for one in module.modules()
            if isinstance(one, nn.Linear | nn.Conv2d)
        )

    encoder = matrices(model.model.vision_encoder) + matrices(model.model.projector)
    pixels, tokens = 3 * config.image_size**2, config.tokens_per_tile * config.text.hidden_size
    assert work["vision_encode"].moved_bytes == encoder + 4 * (pixels + tokens)
    language = matrices(model.model.language_model) + 4 * model.lm_head.weight.numel()
    kept = 4 * 2 * config.text.num_key_value_heads * 12  # one layer, heads of 12
    row = 4 * config.text.hidden_size
    assert work["prefill"].moved_bytes == language + 40 * (row + kept)
    assert work["tpot"].moved_bytes == language + row + (40 + 10 + 1) * kept
    assert work["embed"].moved_bytes == 40 * 2 * row


@pytest.mark.parametrize("kind", get_args(MergerKind))
def test_weights_of_each_merger_are_those_of_its_products(kind: str) -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1, "kind": kind}])
    [spec] = config.merger_specs
    merger = build_merger(spec, 64, (8, 8))
    found = sum(one.numel() for name, one in merger.named_parameters() if one.ndim > 1)
    positions = sum(one.numel() for name, one in merger.named_parameters() if "position" in name)
    assert merger_weights(kind, 64, 2) == pytest.approx(found - positions, rel=0.02)


def test_every_tower_has_its_prefix() -> None:
    assert {name: tower.prefix_tokens for name, tower in TOWERS.items()} == PREFIX_TOKENS


@pytest.mark.parametrize(("precision", "size"), [("fp16", 2), ("int8", 1), ("int4", 0.5)])
def test_fewer_bits_are_fewer_bytes(precision: str, size: float, tmp_path: Path) -> None:
    config = laco_config("aimv2_vision_model", [])
    few, many = (
        stage_work(tmp_path, facts, facts.variants[0], REQUEST)["tpot"].moved_bytes
        for facts in (facts_of(config, tmp_path, precision), facts_of(config, tmp_path))
    )
    head = config.text.hidden_size * config.text.vocab_size
    layers = sum(
        one.weight.numel()
        for one in empty_model(config).model.language_model.modules()
        if isinstance(one, nn.Linear)
    )
    saved = layers * (4 - size) + head * (4 - max(size, 1))  # the head stays in 8 bits
    assert many - few == saved


def test_the_fraction_is_the_longer_of_the_two_limits_over_the_time(tmp_path: Path) -> None:
    facts = facts_of(laco_config("aimv2_vision_model", []), tmp_path)
    measured: dict[Any, float] = {"vision_encode": 2.0, "embed": 1.0, "prefill": 4.0}
    found = variant_limits(tmp_path, facts, facts.variants[0], REQUEST, RATES, measured)
    assert found.note is None
    assert tuple(one.stage for one in found.stages) == LIMITED_STAGES
    for stage in found.stages:
        assert stage.rate_precision == "fp32"
        assert stage.compute_ms == pytest.approx(stage.gflop / 100 * 1000)
        assert stage.memory_ms == pytest.approx(stage.bytes / 50e9 * 1000)
        assert stage.limit_ms == max(stage.compute_ms or 0, stage.memory_ms or 0)
        longer = "compute" if (stage.compute_ms or 0) >= (stage.memory_ms or 0) else "memory"
        assert stage.bound == longer
        if stage.stage == "tpot":  # one token was asked for
            assert (stage.measured_ms, stage.fraction_reached) == (None, None)
        else:
            assert stage.limit_ms is not None
            expected = stage.limit_ms / measured[stage.stage]
            assert stage.fraction_reached == pytest.approx(expected)
    assert {one.bound for one in found.stages} == {"compute", "memory"}


def test_integers_are_held_against_the_fastest_rate_there_is(tmp_path: Path) -> None:
    facts = facts_of(laco_config("aimv2_vision_model", []), tmp_path, "int8")
    found = variant_limits(tmp_path, facts, facts.variants[0], REQUEST, RATES, {})
    assert {one.rate_precision for one in found.stages} == {"bf16"}


def test_without_rates_the_work_is_told_all_the_same(tmp_path: Path) -> None:
    facts = facts_of(laco_config("aimv2_vision_model", []), tmp_path)
    nothing = MachineRates(matrix_gflops={}, memory_gb_per_s=None, threads=None, notes=("why",))
    found = variant_limits(tmp_path, facts, facts.variants[0], REQUEST, nothing, {"prefill": 1.0})
    for stage in found.stages:
        assert stage.bytes > 0
        assert (stage.limit_ms, stage.bound, stage.fraction_reached) == (None, None, None)


@pytest.mark.parametrize("text", ["", "[]", '{"vision_config": {}}', '{"vision_config": 3}', None])
def test_a_config_that_does_not_tell_becomes_a_note(text: str | None, tmp_path: Path) -> None:
    facts = facts_of(laco_config("aimv2_vision_model", []), tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BundleError, match=r"config\.json"):
        stage_work(tmp_path, facts, facts.variants[0], REQUEST)
    found = variant_limits(tmp_path, facts, facts.variants[0], REQUEST, RATES, {})
    assert found.stages == ()
    assert "config.json" in str(found.note)


def test_mergers_that_leave_another_grid_are_not_believed(tmp_path: Path) -> None:
    facts = facts_of(laco_config("aimv2_vision_model", [{"after_block": 1}]), tmp_path)
    wrong = facts.variants[0].model_copy(update={"merged_grid": (3, 3)})
    with pytest.raises(BundleError, match="3x3"):
        stage_work(tmp_path, facts, wrong, REQUEST)


def test_an_encoder_without_a_formula_is_named(tmp_path: Path) -> None:
    facts = facts_of(laco_config("aimv2_vision_model", []), tmp_path)
    other = facts.vision.model_copy(update={"model_type": "convnext"})
    with pytest.raises(ArgumentError, match="convnext"):
        stage_work(tmp_path, facts.model_copy(update={"vision": other}), facts.variants[0], REQUEST)


def test_the_full_size_encoder_has_the_published_operations(tmp_path: Path) -> None:
    from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS

    config = LacoConfig(
        vision_config=VISION_PRESETS["aimv2-large-448"].config().to_dict(),
        text_config=LANGUAGE_PRESETS["qwen2.5-0.5b"].config().to_dict(),
        mergers=[{"after_block": 6}],
    )
    facts = facts_of(config, tmp_path)
    shape = RequestShape(tiles=1, prompt_tokens=288, new_tokens=1)
    work = stage_work(tmp_path, facts, facts.variants[0], shape)
    assert work["vision_encode"].operations / 1e9 == pytest.approx(311, rel=0.01)
    # All of the language model's matrices, and those of its head, once.
    assert math.isclose(work["tpot"].moved_bytes, 4 * 494e6, rel_tol=0.02)


def test_a_config_that_says_nothing_of_odd_grids_means_the_default(tmp_path: Path) -> None:
    config = laco_config("siglip_vision_model", [{"after_block": 1}])
    facts = facts_of(config, tmp_path)
    expected = stage_work(tmp_path, facts, facts.variants[0], REQUEST)
    values = config.to_dict()
    for merger in values["mergers"]:
        del merger["odd_grid"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert stage_work(tmp_path, facts, facts.variants[0], REQUEST) == expected
