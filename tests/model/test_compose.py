"""Composing takes published weights over unchanged, and refuses what does not fit beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from laco_deploy.model import MergerSpec, parts
from laco_deploy.model import compose as compose_module
from laco_deploy.model.checkpoint import load_checkpoint
from laco_deploy.model.compose import compose, plan
from laco_deploy.model.parts import Part, find_language_model, find_vision, read_preprocessing
from laco_deploy.model.presets import VISION_PRESETS
from laco_runtimes.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from tests.model.composing import (
    ROWS,
    TOKENIZER,
    add_tokens,
    rename_token,
    write_language_model,
    write_vision,
)
from tests.model.published_folders import rewrite, set_config, siglip_folder
from tests.model.tower_samples import BLOCKS, KINDS, pixels, published_output

LACO = [MergerSpec(after_block=1)]


@pytest.fixture
def vision(tmp_path: Path) -> Path:
    write_vision(tmp_path / "vision")
    return tmp_path / "vision"


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    write_language_model(tmp_path / "llm")
    return tmp_path / "llm"


def found(vision: Path, llm: Path, **options: Any) -> tuple[Part, Part]:
    return find_vision(str(vision), **options), find_language_model(str(llm))


@pytest.mark.parametrize("kind", KINDS)
def test_composed_encoder_without_merger_is_the_published_one_bit_for_bit(
    kind: str, tmp_path: Path, llm: Path
) -> None:
    published = write_vision(tmp_path / "tower", kind)
    composed = compose(*found(tmp_path / "tower", llm), [])
    images = pixels(published.config)
    with torch.no_grad():
        ours = composed.model.model.vision_encoder(images)
    assert torch.equal(ours, published_output(published, images))


@pytest.mark.parametrize("tied", [True, False])
def test_composed_language_model_is_the_published_one_bit_for_bit(
    vision: Path, tmp_path: Path, tied: bool
) -> None:
    published = write_language_model(tmp_path / "text", tie_word_embeddings=tied)
    composed = compose(*found(vision, tmp_path / "text"), LACO)
    ids = torch.arange(12).reshape(1, 12) + 20
    with torch.no_grad():
        assert torch.equal(composed.model(input_ids=ids).logits, published(input_ids=ids).logits)


def test_saved_checkpoint_loads_with_the_same_weights_and_every_file(
    vision: Path, llm: Path, tmp_path: Path
) -> None:
    composed = compose(*found(vision, llm), LACO)
    composed.save(tmp_path / "ckpt")
    loaded = load_checkpoint(tmp_path / "ckpt")
    for name, weight in composed.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name]), name
    assert loaded.config.tokens_per_tile == 16
    assert loaded.template.image_token_id == TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
    assert (tmp_path / "ckpt" / "README.md").is_file()


def test_what_is_new_is_drawn_from_the_seed_and_starts_as_average_pooling(
    vision: Path, llm: Path
) -> None:
    one, same, other = (compose(*found(vision, llm), LACO, seed=s).model.model for s in (1, 1, 2))
    weights = [model.projector.linear_1.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    last = one.vision_encoder.mergers["1"].linear_2
    assert not last.weight.any()
    assert not last.bias.any()


def test_composing_leaves_the_random_numbers_of_the_caller_alone(vision: Path, llm: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    compose(*found(vision, llm), LACO, seed=9)
    assert torch.equal(torch.rand(2), expected)


def test_random_weights_need_the_settings_of_a_folder_only(
    vision: Path, llm: Path, tmp_path: Path
) -> None:
    for folder in (vision, llm):
        (folder / "model.safetensors").unlink()
    (llm / "tokenizer.json").unlink()
    composed = compose(*found(vision, llm), LACO, random_weights=True)
    assert composed.config.text.vocab_size == ROWS
    assert all(weight.isfinite().all() for weight in composed.model.parameters())
    composed.save(tmp_path / "ckpt")
    assert "for speed only" in (tmp_path / "ckpt" / "README.md").read_text()
    loaded = load_checkpoint(tmp_path / "ckpt")
    assert loaded.config.text.eos_token_id in loaded.template.stop


def test_siglip_folder_gives_as_many_blocks_as_are_asked_for(tmp_path: Path, llm: Path) -> None:
    siglip_folder(tmp_path / "siglip")
    composed = compose(*found(tmp_path / "siglip", llm, blocks=BLOCKS - 1), LACO)
    assert len(composed.model.model.vision_encoder.tower.encoder.layers) == BLOCKS - 1
    with pytest.raises(ConfigError, match=f"Choose 1 to {BLOCKS}"):
        find_vision(str(tmp_path / "siglip"), blocks=BLOCKS + 1)


# What stands beside the weights.


def test_mean_and_std_beside_the_weights_go_before_those_of_the_kind(vision: Path) -> None:
    part = find_vision(str(vision))
    assert read_preprocessing(part, 56).mean == VISION_PRESETS["aimv2-large-448"].mean
    path = vision / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    assert read_preprocessing(part, 56).mean == (0.1, 0.2, 0.3)
    assert read_preprocessing(part, 56).std == (0.4, 0.5, 0.6)
    path.write_text(json.dumps({"image_mean": 0.5}))
    with pytest.raises(CheckpointError, match="three numbers"):
        read_preprocessing(part, 56)


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("apache-2.0", "apache-2.0"), "license: apache-2.0\n"),
        (
            ("mit", "apache-2.0"),
            "license: other\nlicense_name: mit-and-apache-2.0\n# vision: mit\n# llm: apache-2.0\n",
        ),
        (("mit", None), "license: other\n# vision: mit\n# llm: not stated\n"),
        ((None, None), ""),
    ],
)
def test_card_states_the_licence_of_the_sources(
    vision: Path, llm: Path, licences: tuple[str | None, str | None], expected: str
) -> None:
    for folder, licence in zip((vision, llm), licences, strict=True):
        if licence:
            (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    card = compose(*found(vision, llm), LACO).card
    assert card.partition("library_name")[0] == f"---\n{expected}"
    for fact in ("16 of 64", "GFLOP per image", "laco 2x2 after block 1", "untrained"):
        assert fact in card
    assert str(vision.parent) not in card


# Tokenizers. Ids are looked up by name.


def test_image_token_of_the_tokenizer_is_taken_by_name(vision: Path, llm: Path) -> None:
    add_tokens(llm, 5)  # more special tokens than any fixed unpacking expects
    composed = compose(*found(vision, llm), LACO)
    assert composed.config.image_token_id == TOKENIZER.convert_tokens_to_ids("<|image_pad|>")
    assert composed.config.text.eos_token_id == TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def test_missing_image_token_gets_the_first_spare_row_of_the_embedding(
    vision: Path, llm: Path, tmp_path: Path
) -> None:
    rename_token(llm)
    composed = compose(*found(vision, llm), LACO)
    assert composed.config.image_token_id == len(TOKENIZER)
    composed.save(tmp_path / "ckpt")
    saved = load_checkpoint(tmp_path / "ckpt")
    assert saved.template.image_token_id == len(TOKENIZER) < saved.config.text.vocab_size


def test_missing_image_token_is_refused_where_no_row_is_spare(vision: Path, tmp_path: Path) -> None:
    write_language_model(tmp_path / "full", vocab_size=len(TOKENIZER))
    rename_token(tmp_path / "full")
    with pytest.raises(ConfigError, match=f"needs {len(TOKENIZER) + 1} embedding rows"):
        plan(*found(vision, tmp_path / "full"), LACO)


def test_tokenizer_of_another_folder_is_taken_where_it_is_named(
    vision: Path, llm: Path, tmp_path: Path
) -> None:
    (llm / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json"):
        plan(*found(vision, llm), LACO)
    planned = plan(*found(vision, llm), LACO, tokenizer=tmp_path)
    assert len(planned.vocabulary.tokenizer) == len(TOKENIZER)


@pytest.mark.parametrize("damage", ["", "{", '{"model": 1}'])
def test_damaged_tokenizer_is_refused(vision: Path, llm: Path, damage: str) -> None:
    (llm / "tokenizer.json").write_text(damage)
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        plan(*found(vision, llm), LACO)


def test_tokenizer_without_chat_tokens_is_refused(vision: Path, llm: Path) -> None:
    rename_token(llm, "<|im_start|>", "<s>")
    with pytest.raises(CheckpointError, match=r"no <\|im_start\|>"):
        plan(*found(vision, llm), LACO)


# Bad input, before any weight is in memory.


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(compose_module, "_build", refuse)


@pytest.mark.usefixtures("no_model")
def test_k_out_of_range_is_refused(vision: Path, llm: Path) -> None:
    with pytest.raises(ConfigError, match=f"Choose 1 to {BLOCKS}"):
        compose(*found(vision, llm), [MergerSpec(after_block=BLOCKS + 1)])


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("which", ["vision", "llm"])
def test_missing_and_left_over_keys_are_listed(
    vision: Path, llm: Path, tmp_path: Path, which: str
) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        name = sorted(tensors)[0]
        tensors["stranger.weight"] = tensors.pop(name)

    rewrite(tmp_path / which, rename)
    with pytest.raises(CheckpointError, match=r"1 missing: .*1 left over: stranger\.weight"):
        compose(*found(vision, llm), LACO)


@pytest.mark.usefixtures("no_model")
def test_language_model_whose_width_does_not_fit_its_heads_is_refused(
    vision: Path, llm: Path
) -> None:
    set_config(llm, hidden_size=33)
    with pytest.raises(ConfigError, match="33 wide"):
        compose(*found(vision, llm), LACO)


@pytest.mark.usefixtures("no_model")
def test_language_model_whose_weights_are_of_another_width_is_refused(
    vision: Path, llm: Path
) -> None:
    set_config(llm, hidden_size=48)
    with pytest.raises(CheckpointError, match="of another shape"):
        compose(*found(vision, llm), LACO)


@pytest.mark.usefixtures("no_model")
def test_preset_without_random_weights_says_where_weights_are(llm: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="apple/aimv2-large-patch14-448") as caught:
        compose(find_vision("aimv2-large-448"), find_language_model(str(llm)))
    assert "--random-weights" in str(caught.value)


def test_swapped_folders_are_refused(vision: Path, llm: Path) -> None:
    with pytest.raises(ConfigError, match="unknown vision encoder 'qwen2'"):
        find_vision(str(llm))
    with pytest.raises(ConfigError, match="of type 'aimv2_vision_model'"):
        find_language_model(str(vision))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aimv2-large-484", r"Did you mean 'aimv2-large-448'\?"),
        ("clip", "Presets: aimv2-large-224, .*, internvit-300m-448"),
        ("nobody/aimv2", "not in the local Hugging Face cache.*--download"),
        ("a/b/c", "there is no folder 'a/b/c'"),
    ],
)
def test_unknown_encoder_is_refused(name: str, message: str) -> None:
    with pytest.raises((ConfigError, CheckpointNotFoundError), match=message):
        find_vision(name)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid"), ("[]", "not valid")])
def test_damaged_config_is_refused(vision: Path, text: str, message: str) -> None:
    (vision / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        find_vision(str(vision))
    (vision / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"holds no config\.json"):
        find_vision(str(vision))


def test_hub_is_asked_only_on_request_and_for_weights_last(
    vision: Path, llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool, bool]] = []

    def snapshot(hub_id: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        weights = any("safetensors" in pattern for pattern in allow_patterns)
        asked.append((hub_id, weights, local_files_only))
        return str(vision if hub_id == "some/vision" else llm)

    monkeypatch.setattr(parts, "snapshot_download", snapshot)
    find_vision("some/vision")
    assert asked == [("some/vision", False, True)]
    asked.clear()
    tower = find_vision("some/vision", download=True)
    text = find_language_model("some/llm", download=True)
    with pytest.raises(ConfigError):
        compose(tower, text, [MergerSpec(after_block=BLOCKS + 1)])
    assert not any(weights for _, weights, _ in asked)
    composed = compose(tower, text, LACO)
    assert asked[-2:] == [("some/vision", True, False), ("some/llm", True, False)]
    assert "base_model:\n- some/vision\n- some/llm\n" in composed.card
