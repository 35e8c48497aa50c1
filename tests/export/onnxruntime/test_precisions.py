"""Graphs in fewer bits: what is written, and that it still says the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from laco_export.precision import Precisions
from laco_export.targets import onnxruntime_level
from laco_export.targets.onnxruntime_weights import LEVEL_KEY
from laco_runtimes.errors import EngineError, ExportError
from tests.export.onnxruntime.work import Compiled, Source, compile_bundle, cosine

IMAGE = Image.radial_gradient("L").convert("RGB")
PROMPT = "How many dots are there?"

LIMITS = {
    Precisions("fp16", "fp16"): (0.99999, 0.99999),
    Precisions("int8", "int8"): (0.998, 0.998),
    Precisions("int8w", "int8"): (0.998, 0.998),
    Precisions("int8", "int4"): (0.998, 0.85),
}
"""Least cosine of visual tokens and of logits with fp32. The weights are random and wide."""


def operators(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path, load_external_data=False).graph.node)


def attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {one.name: one.i for one in node.attribute}


@pytest.fixture(scope="module")
def small(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("small") / "work"
    return compile_bundle(source, root, Precisions("int8", "int4"))


@pytest.mark.parametrize("precisions", LIMITS, ids=str)
def test_every_precision_says_what_fp32_says(
    source: Source, plain: Compiled, tmp_path: Path, precisions: Precisions
) -> None:
    compiled = compile_bundle(source, tmp_path / "work", precisions)
    engine, exact = compiled.engine("cpu"), plain.engine("cpu")
    pixels = source.pixels(IMAGE)
    tokens = engine.vision.encode(pixels), exact.vision.encode(pixels)
    assert tokens[0].dtype == np.float32
    embeds = exact.language.embed(source.ids(PROMPT))
    logits = engine.language.prefill(embeds), exact.language.prefill(embeds)
    steps = engine.language.step(7), exact.language.step(7)
    found = cosine(*tokens), min(cosine(*logits), cosine(*steps))
    assert found >= LIMITS[precisions]
    assert cosine(engine.language.embed([5, 9]), exact.language.embed([5, 9])) > 0.9999


def test_in_fp32_the_engine_loads_the_exporters_own_graphs(plain: Compiled) -> None:
    assert plain.facts.decoder == "onnx/decoder_contrib.onnx"
    assert not (plain.root / "onnxruntime").exists()


def test_int4_has_no_wide_matrix_left_and_a_head_of_8_bits(small: Compiled) -> None:
    nodes = operators(small.root / small.facts.decoder)
    products = [attributes(node) for node in nodes if node.op_type == "MatMulNBits"]
    layers = small.facts.language.layers
    assert [one["bits"] for one in products] == [4] * (7 * layers) + [8]
    assert products[-1]["N"] == small.facts.language.vocab_size
    assert "MatMul" not in {node.op_type for node in nodes}


def test_biases_are_added_inside_the_product(small: Compiled) -> None:
    nodes = operators(small.root / small.facts.decoder)
    biased = [node for node in nodes if node.op_type == "MatMulNBits" and len(node.input) == 6]
    assert len(biased) == 3 * small.facts.language.layers
    assert "Add" not in {node.op_type for node in nodes}


def test_files_shrink_with_their_bits(plain: Compiled, small: Compiled) -> None:
    def size(folder: Path, name: str) -> int:
        [data] = folder.glob(f"{name}.onnx*data")
        return data.stat().st_size

    for name in ("vision_encoder", "embed_tokens"):
        before = size(plain.root / "onnx", name)
        assert size(small.root / "onnxruntime", name) < before * 0.4


def test_the_accuracy_level_that_was_taken_is_in_the_graph(small: Compiled) -> None:
    model = onnx.load(small.root / small.facts.decoder, load_external_data=False)
    [level] = [int(one.value) for one in model.metadata_props if one.key == LEVEL_KEY]
    levels = [attributes(node) for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert {one["accuracy_level"] for one in levels if one["bits"] == 4} == {level}


def test_activations_stay_floats_where_rounding_them_changes_what_is_said(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = iter([True, False])  # the first logits asked for are those of the fast level

    def changed(*args: object) -> np.ndarray:  # type: ignore[type-arg]
        return np.eye(4, dtype=np.float32)[::-1] if next(fast) else np.eye(4, dtype=np.float32)

    monkeypatch.setattr(onnxruntime_level, "_logits", changed)
    compiled = compile_bundle(source, tmp_path / "work", Precisions("fp32", "int4"))
    nodes = operators(compiled.root / compiled.facts.decoder)
    products = [attributes(node) for node in nodes if node.op_type == "MatMulNBits"]
    assert {(one["bits"], one["accuracy_level"]) for one in products} == {(4, 1), (8, 4)}


def test_what_bf16_needs_is_said_before_anything_is_loaded(source: Source, tmp_path: Path) -> None:
    compiled = compile_bundle(source, tmp_path / "work", Precisions("bf16", "bf16"))
    assert compiled.facts.cache_dtype == "bfloat16"
    with pytest.raises(EngineError, match=r"bf16 on a GPU alone.*device 'cuda'.*--precision"):
        compiled.engine("cpu")


def test_heads_that_group_query_attention_does_not_rotate_are_named_with_the_way_out(
    source: Source, tmp_path: Path
) -> None:
    language = source.manifest.language.model_copy(update={"head_dim": 24})
    narrow = replace(source, manifest=source.manifest.model_copy(update={"language": language}))
    with pytest.raises(ExportError, match=r"multiple of 16.*are 24 wide.*--decoder stateful"):
        compile_bundle(narrow, tmp_path / "work", Precisions("fp32", "int8"))
