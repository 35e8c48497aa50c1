"""The formula, the operations counted on the real modules, and the published table agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from transformers import PreTrainedConfig

from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.cost import (
    behind_encoder,
    count_operations,
    count_parameters,
    formula_operations,
)
from laco_deploy.model.facts import model_facts
from laco_deploy.model.merger_spec import RATIOS, MergerKind
from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS
from laco_deploy.model.towers import TOWERS
from tests.model.tower_samples import KINDS, laco_config

SMALL_TEXT = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "vocab_size": 64,
}

# The specification's table of theoretical cost: GFLOP behind the encoder (k = L), then the ratio
# to that for each k. Encoder, blocks, what becomes of an odd grid.
Row = tuple[str, int, str, float, dict[int, float]]
TABLE: list[Row] = [
    ("aimv2-large-224", 24, "replicate", 165, {2: 0.310, 4: 0.373, 6: 0.435, 12: 0.624}),
    ("aimv2-large-336", 24, "replicate", 390, {2: 0.302, 4: 0.365, 6: 0.429, 12: 0.619}),
    ("aimv2-large-448", 24, "replicate", 738, {2: 0.292, 4: 0.357, 6: 0.421, 12: 0.614}),
    ("internvit-300m-448", 24, "replicate", 726, {2: 0.292, 4: 0.357, 6: 0.421, 12: 0.614}),
    (
        *("siglip-so400m-384", 26, "replicate", 644),
        {2: 0.311, 4: 0.368, 6: 0.426, 7: 0.454, 13: 0.627},
    ),
    ("siglip-so400m-384", 26, "crop", 644, {2: 0.278, 4: 0.338, 6: 0.399, 7: 0.429, 13: 0.609}),
    (
        *("siglip-so400m-384", 27, "replicate", 669),
        {2: 0.309, 4: 0.364, 5: 0.392, 6: 0.419, 7: 0.447, 13: 0.613, 14: 0.641},
    ),
]
ROWS = [pytest.param(row, id=f"{row[0]}-{row[1]}-{row[2]}") for row in TABLE]
TOLERANCE = 0.005


def published_config(row: Row, k: int) -> LacoConfig:
    name, blocks, odd_grid, _, _ = row
    return LacoConfig(
        vision_config=VISION_PRESETS[name].config(blocks).to_dict(),
        text_config=SMALL_TEXT,
        mergers=[{"after_block": k, "odd_grid": odd_grid}],
    )


def check_row(row: Row, encoder_operations: Any, places: list[int]) -> None:
    _, blocks, _, gflop, ratios = row
    whole = encoder_operations(published_config(row, blocks))
    assert whole / 1e9 == pytest.approx(gflop, rel=TOLERANCE)
    for k in places:
        ratio = encoder_operations(published_config(row, k)) / whole
        assert ratio == pytest.approx(ratios[k], rel=TOLERANCE)


@pytest.mark.parametrize("row", ROWS)
def test_formula_gives_the_published_table(row: Row) -> None:
    check_row(row, lambda config: formula_operations(config).encoder, list(row[4]))


@pytest.mark.parametrize("row", ROWS)
def test_counted_modules_give_the_published_table_at_a_quarter(row: Row) -> None:
    check_row(row, lambda config: count_operations(config).encoder, [6])


@pytest.mark.full
@pytest.mark.parametrize("row", ROWS)
def test_counted_modules_give_the_published_table(row: Row) -> None:
    check_row(row, lambda config: count_operations(config).encoder, list(row[4]))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kind", get_args(MergerKind))
def test_formula_of_each_merger_is_what_its_modules_do(kind: str, ratio: int) -> None:
    # 9 x 9 patches, which 2 and 4 do not divide.
    config = laco_config("siglip_vision_model", [{"after_block": 1, "kind": kind, "ratio": ratio}])
    assert formula_operations(config) == count_operations(config)


@pytest.mark.parametrize("mergers", [[], [(1, "replicate"), (3, "crop")]])
@pytest.mark.parametrize("tower", KINDS)
def test_formula_of_each_encoder_is_what_its_modules_do(
    tower: str, mergers: list[tuple[int, str]]
) -> None:
    config = laco_config(tower, [{"after_block": k, "odd_grid": odd} for k, odd in mergers])
    assert formula_operations(config) == count_operations(config)


def test_every_encoder_is_counted() -> None:
    assert set(KINDS) == set(TOWERS)


def test_shortcut_costs_no_operation() -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1, "kind": "pixel_shuffle"}])
    with_shortcut = [replace(spec, shortcut="window_mean") for spec in config.merger_specs]
    assert formula_operations(config, with_shortcut) == formula_operations(config)


def test_prefill_of_the_published_language_model_is_counted_on_its_modules() -> None:
    text: PreTrainedConfig = LANGUAGE_PRESETS["qwen2.5-0.5b"].config()
    config = laco_config("aimv2_vision_model", [])
    config.text_config = text
    tokens, layers = config.tokens_per_tile, 24
    # 2 N per weight of the 357.9 million outside the embedding, norms and biases apart.
    matrices = 494_032_768 - 151_936 * 896 - layers * (2 * 896 + 896 + 2 * 128) - 896
    expected = 2 * tokens * matrices + layers * 4 * tokens**2 * 896
    assert formula_operations(config).prefill == expected
    assert count_operations(config).prefill == expected


def test_laco_at_1_is_the_same_mergers_behind_the_encoder() -> None:
    config = laco_config("aimv2_vision_model", [{"after_block": 1}, {"after_block": 2}])
    behind = behind_encoder(config)
    assert [spec.after_block for spec in behind] == [3, 3]
    operations = formula_operations(config, behind)
    uncompressed = formula_operations(config, ())
    assert operations.blocks == uncompressed.blocks
    assert operations.prefill == formula_operations(config).prefill  # 4 tokens in either case
    assert formula_operations(config).encoder < operations.encoder


@pytest.mark.parametrize(
    ("name", "mergers"),
    [("aimv2-large-448", 5_244_928 + 8_192), ("siglip-so400m-384", 6_637_824 + 9_216)],
)
def test_parameters_of_each_part_are_the_published_ones(name: str, mergers: int) -> None:
    vision, text = VISION_PRESETS[name], LANGUAGE_PRESETS["qwen2.5-0.5b"]
    config = LacoConfig(
        vision_config=vision.config().to_dict(),
        text_config=text.config().to_dict(),
        image_newline=True,
    )
    found = count_parameters(config)
    assert found.tower == vision.parameters
    assert found.mergers == mergers
    assert found.projector == config.vision.hidden_size * 896 + 896 + 896 * 896 + 896
    assert found.language_model == text.parameters
    assert found.image_newline == 896


@pytest.mark.parametrize("tied", [True, False])
def test_parts_add_up_to_the_model(tied: bool) -> None:
    config = LacoConfig(
        vision_config=laco_config("internvl_vision", []).vision.to_dict(),
        text_config=SMALL_TEXT | {"tie_word_embeddings": tied},
        mergers=[{"after_block": 2, "kind": "token_packer"}],
    )
    model = LacoForConditionalGeneration(config)
    assert count_parameters(config).total == sum(w.numel() for w in model.parameters())


def test_facts_state_the_theoretical_ratios_of_the_paper() -> None:
    config = published_config(TABLE[2], 6)
    facts = model_facts(config).to_json()
    assert facts["tokens_per_tile"] == 256
    assert facts["tokens_per_tile_uncompressed"] == 1024
    assert facts["encoder_ratio_to_behind_encoder"] == pytest.approx(0.421, rel=TOLERANCE)
    # Without the merger's own operations, of which an uncompressed model has none.
    assert facts["encoder_ratio_to_uncompressed"] > facts["encoder_ratio_to_behind_encoder"]
    assert facts["gflop_per_tile_behind_encoder"]["encoder"] == pytest.approx(738, rel=TOLERANCE)


def test_facts_take_no_memory_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    build = LacoForConditionalGeneration.__init__

    def recorded(self: LacoForConditionalGeneration, config: LacoConfig) -> None:
        build(self, config)
        devices.extend(str(weight.device) for weight in self.parameters())

    monkeypatch.setattr(LacoForConditionalGeneration, "__init__", recorded)
    model_facts(laco_config("aimv2_vision_model", [{"after_block": 1}]))
    assert set(devices) == {"meta"}
