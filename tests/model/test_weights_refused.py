"""Published weights that do not fit: refused with the reason, before anything is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config

from laco_deploy.model.weights import load_language_model, load_tower
from laco_runtimes.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from tests.model.published_folders import (
    INTERN_VISION_CONFIG,
    WEIGHTS,
    intern_vision_weights,
    language_model,
    rewrite,
    set_config,
    siglip_folder,
    write_folder,
)
from tests.model.tower_samples import BLOCKS, WIDTH, published_model, vision_config


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where tensors are read or a model with memory is built: the check comes first."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("weights were read before they were checked")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr("laco_deploy.model.published.PublishedFolder.read", refuse)


@pytest.fixture
def aimv2(tmp_path: Path) -> Path:
    published_model("aimv2_vision_model").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("encoder.layers.1.ffn.up_proj.weight"),
            r"1 missing: encoder\.layers\.1\.ffn\.up_proj\.weight\)",
        ),
        (
            lambda tensors: tensors.update({"adapter.weight": torch.zeros(1)}),
            r"1 left over: adapter\.weight\)",
        ),
        (
            lambda tensors: tensors.update({"rms_norm.weight": torch.zeros(7)}),
            r"1 of another shape: rms_norm\.weight \(7, not 32\)",
        ),
        (
            lambda tensors: [tensors.pop(key) for key in list(tensors) if "layers.2." in key],
            r"9 missing: (encoder\.layers\.2\.\S+, ){5}\.\.\.\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(
    aimv2: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    rewrite(aimv2, change)
    with pytest.raises(CheckpointError, match=message):
        load_tower(aimv2)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_misfits_of_every_kind_stand_in_one_message(tmp_path: Path) -> None:
    weights = intern_vision_weights()
    del weights["encoder.layers.0.ls1"]
    weights["encoder.layers.0.attn.qkv.bias"] = torch.zeros(3 * WIDTH + 1)
    weights["mlp_head.weight"] = torch.zeros(1)
    write_folder(tmp_path, weights, INTERN_VISION_CONFIG)
    with pytest.raises(
        CheckpointError,
        match=r"1 missing: encoder\.layer\.0\.lambda_1; 1 left over: mlp_head\.weight; "
        r"3 of another shape: encoder\.layers\.0\.attn\.qkv\.bias \(97, not 32\)",
    ):
        load_tower(tmp_path)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_siglip_expects_its_leftovers_and_no_others(tmp_path: Path) -> None:
    siglip_folder(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"vision_model.lora.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"\(1 left over: vision_model\.lora\.weight\)"):
        load_tower(tmp_path, blocks=1)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 84}, "image_size = 56, not 84. Learned positions are not interpolated"),
        ({"num_attention_heads": 4}, "num_attention_heads = 2, not 4"),
        ({"hidden_size": 64}, "hidden_size = 32, not 64"),
        ({"hidden_act": "gelu"}, "hidden_act = silu, not gelu"),
    ],
)
def test_weights_of_other_settings_are_refused(
    aimv2: Path, settings: dict[str, Any], message: str
) -> None:
    # Neither heads nor activation show in a shape: they would only give wrong numbers.
    with pytest.raises(CheckpointError, match=message):
        load_tower(aimv2, vision_config("aimv2_vision_model", **settings))


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_folder_whose_own_config_lies_about_the_image_size_is_refused(aimv2: Path) -> None:
    set_config(aimv2, image_size=84)
    with pytest.raises(CheckpointError, match=r"position_embedding\.weight \(64x32, not 144x32\)"):
        load_tower(aimv2)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_configuration_of_another_tower_is_refused(aimv2: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'aimv2_vision_model'.*'siglip_vision_model'"):
        load_tower(aimv2, vision_config("siglip_vision_model"))


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("blocks", [0, BLOCKS + 1])
def test_more_blocks_than_there_are_is_an_error(aimv2: Path, blocks: int) -> None:
    with pytest.raises(ConfigError, match=rf"{blocks} blocks were asked for.*Choose 1 to {BLOCKS}"):
        load_tower(aimv2, blocks=blocks)


def test_a_given_configuration_is_left_as_it_was(aimv2: Path) -> None:
    config = vision_config("aimv2_vision_model", use_head=True)
    assert len(load_tower(aimv2, config, blocks=1).encoder.layers) == 1
    assert (config.num_hidden_layers, config.use_head) == (BLOCKS, True)


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])


def _integers(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"rms_norm.weight": torch.ones(WIDTH, dtype=torch.int8)}))


def _index(folder: Path, file: str) -> None:
    (folder / WEIGHTS).rename(folder / "elsewhere.safetensors")
    index = {"weight_map": {"rms_norm.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_no_config, CheckpointNotFoundError, "neither a folder with a config.json nor"),
        (_bad_config, CheckpointError, "is not JSON"),
        (lambda f: set_config(f, hidden_size="wide"), CheckpointError, "config.json.*not valid"),
        (lambda f: set_config(f, model_type="aimv3"), ConfigError, "Did you mean 'aimv2'"),
        (_pickle, CheckpointNotFoundError, "convert the weights to safetensors"),
        (_cut, CheckpointError, "may be damaged"),
        (_integers, CheckpointError, r"rms_norm\.weight .* is I8, so the weights are quantised"),
        (lambda f: _index(f, "gone.safetensors"), CheckpointError, "'gone.safetensors', which"),
        (
            lambda f: _index(f, "../" + f.name + "/elsewhere.safetensors"),
            CheckpointError,
            "which is not beside it",
        ),
    ],
)
def test_folders_that_hold_no_weights_to_read_are_refused(
    aimv2: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    damage(aimv2)
    with pytest.raises(error, match=message):
        load_tower(aimv2)


@pytest.mark.parametrize("name", ["no/such-model", "no such folder", "./nothing"])
def test_an_id_that_is_not_in_the_cache_is_not_looked_up(name: str) -> None:
    with pytest.raises(CheckpointNotFoundError, match="Give the folder of the published weights"):
        load_tower(name)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_language_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    language_model().save_pretrained(tmp_path)
    wider = Qwen2Config.from_dict({**language_model().config.to_dict(), "hidden_size": 64})
    with pytest.raises(CheckpointError, match="hidden_size = 32, not 64"):
        load_language_model(tmp_path, wider)
    rewrite(tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: model\.norm\.weight"):
        load_language_model(tmp_path)
    set_config(tmp_path, model_type="llama")
    with pytest.raises(ConfigError, match=r"'llama'\. The language model must be a 'qwen2'"):
        load_language_model(tmp_path)
