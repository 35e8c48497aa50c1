"""Every engine keeps the promises of `engines/base.py`, on real graphs that the exporter wrote."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from laco_runtimes.bundle import Bundle, open_bundle
from laco_runtimes.engines import ENGINES, load_engine
from laco_runtimes.engines.base import Floats, LanguageModel, LoadedEngine, LoadRequest
from laco_runtimes.errors import EngineError
from laco_runtimes.generation import generate
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.settings import Settings

HERE = ("onnxruntime", "openvino")
"""Engines that need no GPU. For the others see tests/gpu and tests/runtime/tensorrt."""

IDS = [5, 77, 12, 200, 3, 3, 149, 8, 61, 33]
PICTURE = Image.radial_gradient("L").convert("RGB")

# Relative to the largest logit: only the order of float32 sums may differ. A cache of 8 bits, which
# OpenVINO would take by itself, is off by 1e-2 and more.
TOLERANCE = 1e-4


def request_for(bundle: Bundle, **options: Any) -> LoadRequest:
    settings: dict[str, Any] = {"device": "auto", **options}
    return LoadRequest(bundle.root, bundle.manifest, bundle.variant("laco"), **settings)


@pytest.fixture(scope="module", params=HERE)
def bundle(request: pytest.FixtureRequest, bundle_for: Callable[[str], Path]) -> Bundle:
    pytest.importorskip(ENGINES[request.param].package)
    return open_bundle(bundle_for(request.param))


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> LoadedEngine:
    return load_engine(request_for(bundle))


@pytest.fixture
def language(engine: LoadedEngine) -> LanguageModel:
    engine.language.rewind(0)
    return engine.language


def assert_close(logits: Floats, expected: Floats) -> None:
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


def test_a_brief_engine_leaves_its_preparations_out_and_says_the_same(
    bundle: Bundle, engine: LoadedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[tuple[str, str]] = []
    if bundle.manifest.target == "onnxruntime":
        import onnxruntime

        class Options(onnxruntime.SessionOptions):
            def add_session_config_entry(self, name: str, value: str) -> None:
                entries.append((name, value))
                super().add_session_config_entry(name, value)

        monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    brief = load_engine(request_for(bundle, brief=True))
    if bundle.manifest.target == "onnxruntime":
        assert entries.count(("session.disable_prepacking", "1")) == 2  # encoder and decoder
    expected, found = (at_once(one.language, IDS) for one in (engine, brief))
    assert_close(found, expected)
    side = bundle.manifest.preprocessing.image_size
    pixels = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    assert_close(*(one.vision.encode(pixels) for one in (brief, engine)))


def at_once(language: LanguageModel, ids: Sequence[int]) -> Floats:
    language.rewind(0)
    return language.prefill(language.embed(ids))


def test_shapes_and_types_are_those_of_the_manifest(
    bundle: Bundle, engine: LoadedEngine, language: LanguageModel
) -> None:
    facts, size = bundle.manifest.language, bundle.manifest.preprocessing.image_size
    for tiles in (1, 3):
        features = engine.vision.encode(np.zeros((tiles, 3, size, size), np.float32))
        tokens = bundle.variant("laco").tokens_per_tile
        assert features.shape == (tiles, tokens, facts.hidden_size)
        assert features.dtype == np.float32
    embeds = language.embed(IDS)
    assert (embeds.shape, embeds.dtype) == ((len(IDS), facts.hidden_size), np.float32)
    logits = language.prefill(embeds)
    assert (logits.shape, logits.dtype) == ((facts.vocab_size,), np.float32)


def test_tiles_are_encoded_independently(bundle: Bundle, engine: LoadedEngine) -> None:
    size = bundle.manifest.preprocessing.image_size
    pixels = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    both = engine.vision.encode(pixels)
    for index in range(2):
        assert_close(both[index], engine.vision.encode(pixels[index : index + 1])[0])


def test_token_by_token_is_what_all_at_once_is(language: LanguageModel) -> None:
    expected = at_once(language, IDS)
    at_once(language, IDS[:1])
    for token in IDS[1:]:
        logits = language.step(token)
    assert_close(logits, expected)
    assert language.length == len(IDS)


def test_a_prefill_behind_a_prefill_continues_it(language: LanguageModel) -> None:
    expected = at_once(language, IDS)
    at_once(language, IDS[:4])
    assert_close(language.prefill(language.embed(IDS[4:])), expected)


@pytest.mark.parametrize("kept", [1, 4, len(IDS) - 1])
def test_rewind_forgets_what_came_after(language: LanguageModel, kept: int) -> None:
    expected = at_once(language, IDS)
    at_once(language, [*IDS[:kept], 99, 98, 97])
    language.rewind(kept)
    assert language.length == kept
    for token in IDS[kept:]:
        logits = language.step(token)
    assert_close(logits, expected)


def test_rewind_to_the_present_changes_nothing(language: LanguageModel) -> None:
    expected = at_once(language, IDS)
    at_once(language, IDS[:-1])
    language.rewind(len(IDS) - 1)
    assert_close(language.step(IDS[-1]), expected)


def test_rewind_to_zero_starts_afresh(language: LanguageModel) -> None:
    expected = at_once(language, IDS)
    at_once(language, [1, 2, 3])
    assert_close(at_once(language, IDS), expected)


@pytest.mark.parametrize("length", [-1, 4])
def test_rewind_ahead_or_below_zero_is_refused(language: LanguageModel, length: int) -> None:
    at_once(language, IDS[:3])
    with pytest.raises(EngineError, match="cannot be rewound"):
        language.rewind(length)
    assert language.length == 3


def test_logits_and_embeddings_are_not_overwritten_by_the_next_call(
    language: LanguageModel,
) -> None:
    embeds = language.embed(IDS)
    logits = language.prefill(embeds)
    kept = embeds.copy(), logits.copy()
    language.step(7)
    language.embed([1] * len(IDS))
    assert np.array_equal(embeds, kept[0])
    assert np.array_equal(logits, kept[1])


def test_a_failed_call_is_an_engine_error_and_leaves_the_engine_usable(
    language: LanguageModel,
) -> None:
    expected = at_once(language, IDS)
    at_once(language, IDS[:3])
    with pytest.raises(EngineError, match=r"decoding with .* failed: .*(input|inputs_embeds).*7"):
        language.prefill(np.zeros((2, 7), np.float32))
    language.rewind(0)
    assert_close(at_once(language, IDS), expected)


def test_an_image_of_another_size_is_an_engine_error(engine: LoadedEngine) -> None:
    with pytest.raises(EngineError, match=r"encoding the image with .* failed: .*5"):
        engine.vision.encode(np.zeros((1, 3, 5, 5), np.float32))


def test_two_engines_of_one_bundle_share_no_state(bundle: Bundle, language: LanguageModel) -> None:
    other = load_engine(request_for(bundle)).language
    expected = at_once(language, IDS)
    at_once(language, IDS[:-1])
    at_once(other, [1, 2, 3])
    assert_close(language.step(IDS[-1]), expected)


def test_all_engines_answer_alike(bundle_for: Callable[[str], Path]) -> None:
    answers, features = [], []
    for name in HERE:
        pytest.importorskip(ENGINES[name].package)
        bundle = open_bundle(bundle_for(name))
        engine = load_engine(request_for(bundle))
        embeds = engine.language.embed(IDS)
        tokens = generate(engine.language, embeds, IDS, (), Settings(), 16)
        answers.append([token.id for token in tokens])
        size = bundle.manifest.preprocessing.image_size
        ramp = np.linspace(-1, 1, 3 * size * size, dtype=np.float32).reshape(1, 3, size, size)
        features.append(engine.vision.encode(ramp))
    for answer, feature in zip(answers, features, strict=True):
        assert answer == answers[0]
        assert_close(feature, features[0])


def test_a_pipeline_streams_what_it_chats(bundle: Bundle) -> None:
    pipeline = Pipeline(bundle.root)
    reply = pipeline.chat(PICTURE, "What is in the picture?", max_new_tokens=12)
    assert reply.visual_tokens == bundle.variant("laco").tokens_per_tile
    assert 1 <= reply.new_tokens <= 12
    stream = pipeline.stream(PICTURE, "What is in the picture?", max_new_tokens=12)
    assert "".join(stream) == reply.text
    assert stream.reply.tokens == reply.tokens


def test_auto_says_which_device_and_why(engine: LoadedEngine) -> None:
    assert engine.device
    assert len(engine.reason) > 10


@pytest.mark.parametrize("device", ["tpu", "", "cpu:7", "GPU.9"])
def test_an_unknown_device_is_refused_with_the_known_ones(bundle: Bundle, device: str) -> None:
    with pytest.raises(EngineError, match=r"(?i)no device.*auto, cpu"):
        load_engine(request_for(bundle, device=device))


@pytest.mark.parametrize("graph", ["vision_encoder", "embed_tokens", "decoder"])
def test_a_graph_that_is_none_is_an_engine_error(
    bundle: Bundle, graph: str, tmp_path: Path
) -> None:
    root = tmp_path / "engine"
    shutil.copytree(bundle.root, root)
    path = {
        "vision_encoder": bundle.variant("laco").vision_encoder,
        "embed_tokens": bundle.manifest.embed_tokens,
        "decoder": bundle.manifest.decoder,
    }[graph]
    (root / path).write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match=f"{graph}.*failed"):
        load_engine(LoadRequest(root, bundle.manifest, bundle.variant("laco"), "auto"))


def test_a_graph_with_other_names_is_an_engine_error(bundle: Bundle) -> None:
    swapped = bundle.manifest.model_copy(update={"embed_tokens": bundle.manifest.decoder})
    with pytest.raises(EngineError, match=r"embed_tokens.*differ in"):
        load_engine(LoadRequest(bundle.root, swapped, bundle.variant("laco"), "auto"))
