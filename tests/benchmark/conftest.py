"""A bundle that ONNX Runtime runs, and engines on a fake clock in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer

from laco_deploy.benchmark import request as request_module
from laco_runtimes import graphs
from laco_runtimes.bundle import seal_bundle
from laco_runtimes.engines import ENGINES
from laco_runtimes.engines.base import EngineType
from laco_runtimes.visual import VisualPart, read_visuals
from tests.benchmark.fakes import (
    IMAGE_SIZE,
    MS,
    WIDTH,
    Bench,
    decoder_nodes,
    embed_nodes,
    make_facts,
    save_graph,
    vision_nodes,
)
from tests.runtime.fakes import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (12, 10), "teal").save(path)
    return path


@pytest.fixture(params=[("laco", "external", "uncompressed")], ids=["three variants"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A sealed bundle that ONNX Runtime runs; parametrise it with the names of its variants."""
    facts = make_facts(tokenizer, request.param)
    root = tmp_path / "engine"
    (root / "onnx").mkdir(parents=True)
    save_graph(
        root / facts.embed_tokens,
        graphs.embed_tokens(WIDTH),
        embed_nodes(facts.language.vocab_size),
    )
    save_graph(root / facts.decoder, graphs.decoder(facts.language), decoder_nodes(facts.language))
    for variant in facts.variants:
        spec = graphs.vision_encoder(IMAGE_SIZE, variant.tokens_per_tile, WIDTH)
        save_graph(root / variant.vision_encoder, spec, vision_nodes(variant.merged_grid[0]))
    tokenizer.save(str(root / "tokenizer.json"))
    seal_bundle(root, facts)
    return root


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Bench:
    """Timed engines in the place of ONNX Runtime while a test runs."""
    found = Bench(stop_token=tokenizer.token_to_id("<|im_end|>"))
    row = EngineType("onnxruntime", "numpy", "none", found.load)
    monkeypatch.setitem(ENGINES, "onnxruntime", row)

    def timed_read(*arguments: Any, **options: Any) -> list[VisualPart]:
        found.now += found.decode_ms * MS
        return read_visuals(*arguments, **options)

    monkeypatch.setattr(request_module, "read_visuals", timed_read)
    return found
