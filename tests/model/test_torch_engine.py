"""A checkpoint folder in a pipeline: PyTorch keeps the promises of an engine."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from laco_deploy.model.checkpoint import load_checkpoint, save_checkpoint
from laco_deploy.model.processing import LacoProcessor
from laco_deploy.torch_reference import TorchReference
from laco_deploy.training.tokenizer import train_tokenizer
from laco_runtimes import sources
from laco_runtimes.engines.base import Floats, LanguageModel
from laco_runtimes.errors import (
    ArgumentError,
    BundleError,
    BundleNotFoundError,
    CheckpointError,
    EngineError,
    MissingPackageError,
)
from laco_runtimes.generation import generate, splice
from laco_runtimes.images import Preprocessing
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.prompt import encode_text, load_tokenizer
from laco_runtimes.settings import Settings
from laco_runtimes.sources import Source, open_source
from tests.bundles import IMAGE_SIZE, PROMPTS, make_random_checkpoint, random_config, random_model

PICTURE = Image.radial_gradient("L").convert("RGB")
IDS = [5, 77, 12, 200, 3, 3, 149, 8, 61, 33]
TOLERANCE = 1e-4
"""Relative to the largest logit: only the order of float32 sums may differ."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_checkpoint(tmp_path_factory.mktemp("torch") / "ckpt")


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> Source:
    return open_source(checkpoint)


@pytest.fixture
def language(source: Source) -> LanguageModel:
    source.engine.language.rewind(0)
    return source.engine.language


def assert_close(logits: Floats, expected: Floats) -> None:
    assert logits.shape == expected.shape
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


def at_once(language: LanguageModel, ids: list[int]) -> Floats:
    language.rewind(0)
    return language.prefill(language.embed(ids))


def test_answer_is_that_of_transformers_generate(checkpoint: Path, source: Source) -> None:
    loaded = load_checkpoint(checkpoint)
    processor = LacoProcessor.from_pretrained(checkpoint, local_files_only=True)
    reference = TorchReference(loaded.model, processor.image_processor)
    pixels = reference.preprocess(np.asarray(PICTURE))
    template = source.facts.prompt
    words = encode_text(load_tokenizer(source.tokenizer), PROMPTS[1])
    ids = [*template.system, *template.turn(words, [source.variant.tokens_per_tile])]

    features = source.engine.vision.encode(pixels)
    expected = reference.greedy(pixels, ids, 12)
    assert_close(features, expected.features)
    language = source.engine.language
    language.rewind(0)
    embeds = splice(language.embed(ids), ids, features, template.image_token_id)
    answer = [token.id for token in generate(language, embeds, ids, (), Settings(), 12)]
    assert answer == list(expected.tokens)


def test_pieces_rewinding_and_scoring_give_the_logits_of_one_prefill(
    language: LanguageModel,
) -> None:
    expected = at_once(language, IDS)
    language.rewind(0)
    language.prefill(language.embed(IDS[:4]))
    steps = np.stack([language.step(token) for token in IDS[4:]])
    assert_close(steps[-1], expected)
    assert language.length == len(IDS)
    language.rewind(4)
    assert_close(language.score(IDS[4:]), steps)
    language.rewind(len(IDS) - 1)
    assert_close(language.step(IDS[-1]), expected)


@pytest.mark.parametrize("length", [-1, len(IDS) + 1])
def test_cache_is_not_rewound_to_where_it_never_was(language: LanguageModel, length: int) -> None:
    at_once(language, IDS)
    with pytest.raises(EngineError, match=f"cannot be rewound to {length}"):
        language.rewind(length)


def test_an_error_is_typed_and_leaves_an_empty_cache(language: LanguageModel) -> None:
    expected = at_once(language, IDS)
    with pytest.raises(EngineError, match="decoding with PyTorch failed"):
        language.prefill(np.zeros((2, 7), np.float32))
    assert language.length == 0
    assert_close(language.prefill(language.embed(IDS)), expected)
    with pytest.raises(EngineError, match="PyTorch failed"):
        language.step(10**6)


def test_an_image_of_another_size_is_refused(source: Source) -> None:
    with pytest.raises(ArgumentError, match="5x5"):
        source.engine.vision.encode(np.zeros((1, 3, 5, 5), np.float32))


def test_no_memory_is_an_error_of_its_own(
    language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(language, "_append", full)
    with pytest.raises(MemoryError, match="Tried to allocate"):
        language.step(1)


def test_tiles_are_encoded_together_as_alone(source: Source) -> None:
    size = source.facts.preprocessing.image_size
    tiles = np.random.default_rng(0).standard_normal((3, 3, size, size)).astype(np.float32)
    together = source.engine.vision.encode(tiles)
    alone = [source.engine.vision.encode(tiles[i : i + 1]) for i in range(3)]
    assert_close(together, np.concatenate(alone))


def test_facts_are_those_of_the_model(checkpoint: Path, source: Source) -> None:
    facts, config = source.facts, load_checkpoint(checkpoint).config
    assert (facts.target, facts.language.vocab_size) == ("torch", config.text.vocab_size)
    assert facts.vision.image_size == config.image_size
    assert source.variant.tokens_per_tile == config.tokens_per_tile
    assert [merger.after_block for merger in source.variant.mergers] == [1]
    assert (source.unverified, source.bundle, source.newline) == (None, None, None)
    assert source.engine.capabilities.scores
    assert source.tokenizer.is_file()


def test_pipeline_answers_and_warns_of_nothing(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(checkpoint, device="cpu")
    assert (pipeline.info.engine, pipeline.info.device) == ("torch", "cpu")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    plain = pipeline.chat(PICTURE, PROMPTS[0], max_new_tokens=40)
    assert plain.new_tokens >= 1
    fast = pipeline.chat(PICTURE, PROMPTS[0], max_new_tokens=40, prompt_lookup=6)
    assert fast.tokens == plain.tokens


@pytest.mark.parametrize("name", ["uncompressed", "external", "downsampled"])
def test_a_baseline_is_a_variant_of_a_checkpoint(checkpoint: Path, name: str) -> None:
    source = open_source(checkpoint, variant=name)
    size = source.facts.preprocessing.image_size
    features = source.engine.vision.encode(np.zeros((1, 3, size, size), np.float32))
    assert features.shape[1] == source.variant.tokens_per_tile == {"uncompressed": 64}.get(name, 16)
    assert source.variant.latency_only
    assert [variant.name for variant in source.facts.variants] == ["laco", name]


def test_an_unknown_variant_is_refused_with_those_there_are(checkpoint: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no variant 'lacco'.*laco, uncompressed, external"):
        open_source(checkpoint, variant="lacco")


def test_newline_and_layout_come_from_the_model(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([*PROMPTS, "system user assistant You are a helpful assistant."])
    config = random_config(vocab_size=len(tokenizer))
    values = {**config.to_dict(), "image_newline": True, "image_mode": "anyres", "max_tiles": 4}
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    model = random_model(type(config).from_dict({**values, "image_token_id": image}), seed=3)
    spec = Preprocessing(image_size=IMAGE_SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    save_checkpoint(tmp_path / "ckpt", model=model, tokenizer=tokenizer, preprocessing=spec)
    source = open_source(tmp_path / "ckpt")
    newline = model.model.image_newline
    assert newline is not None
    assert source.newline is not None
    assert source.newline.tolist() == newline.detach().numpy().tolist()
    layout = source.facts.token_layout(source.variant)
    assert (layout.image_mode, layout.newline, layout.max_tiles) == ("anyres", True, 4)


def test_cpu_threads_hold_for_the_engine_alone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, inside = torch.get_num_threads(), []
    source = open_source(checkpoint, threads=1)
    assert "threads" in source.engine.reason
    append = source.engine.language._append  # type: ignore[attr-defined]

    def watched(*args: Any, **kwargs: Any) -> Any:
        inside.append(torch.get_num_threads())
        return append(*args, **kwargs)

    monkeypatch.setattr(source.engine.language, "_append", watched)
    source.engine.language.step(1)
    assert inside == [1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["tpu", "", "cpu:7", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    checkpoint: Path, device: str
) -> None:
    with pytest.raises(EngineError, match=r"sees no device .*auto, cpu"):
        open_source(checkpoint, device=device)


def test_auto_says_why_and_threads_of_a_gpu_are_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no GPU" in open_source(checkpoint).engine.reason or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ArgumentError, match="threads are for the CPU"):
        open_source(checkpoint, device="cuda", threads=2)


@pytest.fixture
def not_installed() -> Iterator[pytest.MonkeyPatch]:
    """`laco_deploy.torch_engine` is imported anew in the test and after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, sources.TORCH_ENGINE, raising=False)
        yield patch


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_without_pytorch_the_error_names_what_to_install(
    checkpoint: Path, not_installed: pytest.MonkeyPatch, package: str
) -> None:
    not_installed.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{package} is not .*laco-deploy\[torch\]"):
        open_source(checkpoint)


def test_a_broken_pytorch_is_not_called_missing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise ImportError("libtorch.so: undefined symbol", name="torch")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EngineError, match="does not start: libtorch"):
        open_source(checkpoint)


def test_a_key_for_a_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="only bundles are signed"):
        open_source(checkpoint, public_key=tmp_path / "key.pub")


def test_what_is_neither_bundle_nor_checkpoint_is_not_found(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleNotFoundError):
            open_source(folder)


def test_a_bundle_that_lost_its_manifest_is_not_taken_for_a_checkpoint(
    checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    with pytest.raises(BundleNotFoundError, match=r"laco\.json"):
        open_source(tmp_path)


def test_a_folder_with_a_manifest_is_a_bundle_whatever_else_is_in_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    mixed = shutil.copytree(checkpoint, tmp_path / "mixed")
    (mixed / "laco.json").write_text("{}")
    with pytest.raises(BundleError):
        open_source(mixed)


def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError):
        open_source(damaged)
    config = json.loads((checkpoint / "config.json").read_text())
    foreign = shutil.copytree(checkpoint, tmp_path / "foreign")
    (foreign / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    with pytest.raises(CheckpointError, match="llava"):
        open_source(foreign)
