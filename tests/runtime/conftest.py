"""A bundle without graphs and an engine without a model: the runtime alone, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from laco_runtimes.bundle import seal_bundle
from laco_runtimes.engines import ENGINES
from laco_runtimes.engines.base import EngineType
from laco_runtimes.images import Preprocessing
from laco_runtimes.manifest import (
    FORMAT_VERSION,
    BundleFacts,
    LanguageFacts,
    MergerFacts,
    Parity,
    Variant,
    VisionFacts,
)
from laco_runtimes.pipeline import Pipeline
from laco_runtimes.prompt import chatml, load_tokenizer
from tests.runtime.fakes import CONTEXT, IMAGE_TOKEN, WIDTH, FakeEngine, byte_tokenizer
from tests.runtime.hashing import HashEngine


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return path


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


@pytest.fixture
def facts(tokenizer: Tokenizer) -> BundleFacts:
    merger = MergerFacts(kind="laco", after_block=1, ratio=2)
    return BundleFacts(
        format_version=FORMAT_VERSION,
        created_by="laco-deploy (tests)",
        target="fake",
        precision={"vision_encoder": "fp32", "embed_tokens": "fp32", "decoder": "fp32"},
        language=LanguageFacts(
            model_type="qwen2",
            layers=1,
            hidden_size=WIDTH,
            heads=1,
            kv_heads=1,
            head_dim=WIDTH,
            vocab_size=tokenizer.get_vocab_size(),
            max_positions=CONTEXT,
        ),
        vision=VisionFacts(
            model_type="aimv2_vision_model", blocks=2, width=WIDTH, image_size=8, patch_size=2
        ),
        preprocessing=Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        prompt=chatml(tokenizer, image_token_id=tokenizer.token_to_id(IMAGE_TOKEN)),
        embed_tokens="onnx/embed_tokens.onnx",
        decoder="onnx/decoder.onnx",
        variants=(
            Variant(
                name="laco",
                mergers=(merger,),
                merged_grid=(2, 2),
                vision_encoder="onnx/vision_encoder.onnx",
                latency_only=False,
            ),
            Variant(
                name="uncompressed",
                mergers=(),
                merged_grid=(4, 4),
                vision_encoder="baseline/uncompressed/vision_encoder.onnx",
                latency_only=True,
            ),
        ),
        parity=Parity(
            images=1,
            adversarial_images=0,
            prompts=1,
            answered_images=1,
            greedy_tokens=1,
            greedy_identical=1,
            ties=0,
            checks=(),
        ),
        versions={"numpy": "2"},
    )


@pytest.fixture
def unsealed(tmp_path: Path, tokenizer_file: Path, facts: BundleFacts) -> Path:
    """A folder with every file of a bundle but its manifest; the graphs are empty ones."""
    root = tmp_path / "engine"
    graphs = [facts.embed_tokens, facts.decoder, *(v.vision_encoder for v in facts.variants)]
    for name in [*graphs, "onnx/decoder.onnx.data", "config.json", "README.md"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        graph = b"\x08\x0a\x12\x05tests\x3a\x00"  # ModelProto: ir_version, producer, no nodes
        (root / name).write_bytes(graph if name.endswith(".onnx") else name.encode())
    (root / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return root


@pytest.fixture
def bundle(unsealed: Path, facts: BundleFacts) -> Path:
    """A sealed bundle for the engine "fake"."""
    seal_bundle(unsealed, facts)
    return unsealed


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> FakeEngine:
    """The engine of target "fake", in the table while a test runs. Answers "A cat." and stops."""
    engine = FakeEngine()
    engine.answer = [*tokenizer.encode("A cat.").ids, tokenizer.token_to_id("<|im_end|>")]
    monkeypatch.setitem(ENGINES, "fake", EngineType("fake", "numpy", "none", engine.load))
    return engine


@pytest.fixture
def load_hashing(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> Callable[..., tuple[Pipeline, HashEngine]]:
    """Loads a pipeline on a `HashEngine` of its own; keywords are those of `Pipeline`."""

    def load(engine: HashEngine | None = None, **options: Any) -> tuple[Pipeline, HashEngine]:
        engine = engine or HashEngine()
        monkeypatch.setitem(ENGINES, "fake", EngineType("fake", "numpy", "none", engine.load))
        return Pipeline(bundle, **options), engine

    return load
