"""Check 8 of the TensorRT path: the very files that plans are built from, run by ONNX Runtime on
the CPU, against the float32 graphs. It proves the graphs; what TensorRT computes is for tests/gpu.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxscript import ir

from laco_export.qdq import FP8, INT4, INT8, calibrate, products, quantize
from laco_runtimes.engines.base import Floats
from tests.export.tensorrt.conftest import CAPACITY, Tiny

pytest.importorskip("tensorrt_rtx", reason="the files are made by an export that builds them")

COSINES = {"fp16": 0.99999, "int8w": 0.999, "int8": 0.99, "fp8": 0.99}
"""Least cosine of a visual token of random pixels. ONNX Runtime has no bf16 on the CPU."""
DIVERGENCES = {"fp16": 1e-4, "int8": 5e-3, "int4": 2.0}
"""Largest mean KL divergence of the next token, in nats, behind tokens drawn at random, which no
training has seen. For int4 it only says that the graph is whole; its codes are held below."""


def run(path: Path, feeds: dict[str, Any], names: list[str]) -> list[Floats]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # As written: fusions of ONNX Runtime round int8 products otherwise, and have no float8.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [np.asarray(one, np.float32) for one in session.run(names, feeds)]


@pytest.mark.parametrize("precision", COSINES)
def test_check_8_encoders_give_the_visual_tokens_of_the_float32_graph(
    tiny: Tiny, precision: str
) -> None:
    feeds = {"pixel_values": tiny.pixels}
    [wanted] = run(tiny.fp32("vision_encoder"), feeds, ["image_features"])
    [found] = run(tiny.compiled("vision_encoder", precision), feeds, ["image_features"])
    rows, others = found.reshape(-1, found.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    assert ((rows * others).sum(1) / lengths).min() > COSINES[precision]


def test_a_baseline_makes_its_image_smaller_in_floats(tiny: Tiny) -> None:
    smaller, whole = (
        [one.name for one in products(ir.load(tiny.fp32(f"vision_encoder.{name}")).graph)]
        for name in ("downsampled", "uncompressed")
    )
    assert smaller == whole  # the layers of the tower, and not the two products that scale pixels


@pytest.mark.parametrize("precision", DIVERGENCES)
def test_check_8_decoders_give_the_next_tokens_of_the_float32_graph(
    tiny: Tiny, precision: str
) -> None:
    embeds = tiny.modules.body.embed_tokens.weight.detach().numpy()
    ids = np.random.default_rng(3).integers(4, len(embeds), 40)
    divergences = [
        divergence(
            decode(tiny, tiny.fp32("decoder_static"), np.float32, embeds[ids[:length]]),
            decode(
                tiny, tiny.compiled("decoder_static", precision), np.float16, embeds[ids[:length]]
            ),
        )
        for length in (7, 19, 40)
    ]
    assert np.mean(divergences) < DIVERGENCES[precision]


def decode(tiny: Tiny, path: Path, dtype: Any, embeds: Floats) -> Floats:
    """Logits behind a prompt that fills an empty cache of static size."""
    facts, length = tiny.job.language, len(embeds)
    cache = np.zeros((1, facts.kv_heads, CAPACITY, facts.head_dim), dtype)
    positions = np.arange(length)
    feeds = {
        "inputs_embeds": embeds[None],
        "position_ids": positions[None],
        "write_indices": np.zeros(1, np.int64),
        "attention_mask": (np.arange(CAPACITY) <= positions[:, None])[None, None],
        **{
            one.name: cache
            for one in tiny.spec("decoder_static").inputs
            if one.name.startswith("past_key_values")
        },
    }
    return run(path, feeds, ["logits"])[0][0, -1]


def divergence(wanted: Floats, found: Floats) -> float:
    logs = [a - a.max() - np.log(np.exp(a - a.max()).sum()) for a in (wanted, found)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())


def test_the_head_has_eight_bits_where_the_body_has_four(tiny: Tiny) -> None:
    graph = ir.load(tiny.compiled("decoder_static", "int4")).graph
    codes = {
        str(node.outputs[0].name): node for node in graph if node.op_type == "DequantizeLinear"
    }
    body = [node for node in codes.values() if node.inputs[0].dtype == ir.DataType.INT4]  # type: ignore[union-attr]
    rest = [node for node in codes.values() if node.inputs[0].dtype == ir.DataType.INT8]  # type: ignore[union-attr]
    assert len(body) == 7 * tiny.job.language.layers
    assert len(rest) == 1
    assert {node.attributes.get_int("axis") for node in body} == {0}  # along K
    assert {node.attributes.get_int("block_size") for node in body} <= {128, 32}


def test_codes_are_within_half_a_step_of_the_weights(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny.fp32("vision_encoder")
    weights = {
        one.name: np.asarray(one.weight.const_value.numpy())  # type: ignore[union-attr]
        for one in products(ir.load(source).graph)
    }
    for scheme, largest in ((INT8, 127), (INT4, 7)):
        quantize(source, tmp_path / "q.onnx", scheme, "float16")
        graph = ir.load(tmp_path / "q.onnx").graph
        stored = {name: value.const_value for name, value in graph.initializers.items()}
        kind = scheme.dtype.name.lower()
        for name, values in weights.items():
            codes = stored[f"{name}.{kind}"].numpy().astype(np.float32)  # type: ignore[union-attr]
            scale = stored[f"{name}.{kind}.scale"].numpy()  # type: ignore[union-attr]
            assert np.abs(codes).max() == largest
            if scale.ndim == 2:
                scale = np.repeat(scale, len(values) // len(scale), axis=0)
            assert (np.abs(codes * scale - values) <= 0.502 * scale + 1e-7).all()


def test_ranges_are_cut_for_integers_and_whole_for_float8(tiny: Tiny) -> None:
    source = tiny.fp32("vision_encoder")
    whole, cut = (calibrate(source, tiny.calibration, scheme) for scheme in (FP8, INT8))
    assert whole.keys() == cut.keys()
    names = {one.name for one in products(ir.load(source).graph)}
    assert whole.keys() == names
    for name, scale in cut.items():
        assert 0 < scale * 127 <= whole[name] * 448 * 1.0001
    assert any(scale * 127 < 0.9 * whole[name] * 448 for name, scale in cut.items())
