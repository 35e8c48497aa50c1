"""What each precision stores, and how near it stays to fp32."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from laco_export.precision import Module, Precisions
from laco_export.targets.openvino import TARGET
from laco_export.targets.openvino_activations import int8_activations
from laco_export.targets.openvino_quantize import int4_weights
from laco_runtimes.engines import openvino as engine
from laco_runtimes.engines.openvino import import_openvino, openvino_core
from laco_runtimes.engines.openvino_joined import join_layers
from laco_runtimes.engines.openvino_pointwise import convolve_layers
from laco_runtimes.errors import ExportError
from tests.export.openvino.work import (
    QUESTIONS,
    Compile,
    Source,
    divergence,
    logits_along,
    request_for,
    write_ranges,
)

EXACT = Precisions("fp32", "fp32")
FLOATS16 = Precisions("fp16", "fp16")
BFLOATS = Precisions("bf16", "bf16")
INT8 = Precisions("int8w", "int8")
ACTIVATIONS = Precisions("int8", "int8")
INT4 = Precisions("int8w", "int4")


def stored(path: Path) -> Counter[str]:
    """How many numbers of each type the weights of a model are, scales and biases left out."""
    found: Counter[str] = Counter()
    for node in openvino_core().read_model(path).get_ops():
        if node.get_type_name() == "Constant" and node.get_output_size() == 1:
            elements = int(np.prod(list(node.shape)))
            if elements >= 128 * 128 and node.shape[0] != 1:  # not the table of positions
                found[node.get_element_type().get_type_name()] += elements
    return found


@pytest.mark.parametrize(
    ("precisions", "module", "types"),
    [
        (EXACT, "decoder", {"f32"}),
        (FLOATS16, "vision_encoder", {"f16"}),
        (FLOATS16, "decoder", {"f16"}),
        (BFLOATS, "decoder", {"bf16"}),
        (INT8, "decoder", {"i8"}),
        (INT8, "embed_tokens", {"i8"}),
        (INT4, "embed_tokens", {"i8"}),
        (INT4, "vision_encoder", {"i8"}),
        (INT4, "decoder", {"i4", "i8"}),
    ],
    ids=lambda value: str(value) if isinstance(value, Precisions | str) else "",
)
def test_a_precision_is_what_the_weights_are_stored_in(
    compiled: Compile, precisions: Precisions, module: Module, types: set[str]
) -> None:
    assert set(stored(compiled(precisions).file(module))) == types


def test_the_head_of_an_int4_decoder_stays_in_8_bits(compiled: Compile, tiny: Source) -> None:
    weights = stored(compiled(INT4).file("decoder"))
    assert weights["i8"] == tiny.language.vocab_size * tiny.language.hidden_size
    assert weights["i4"] > 3 * weights["i8"]


@pytest.mark.parametrize(
    ("precisions", "cosine", "kl"),
    [
        (FLOATS16, 0.9999, 1e-4),
        (BFLOATS, 0.999, 1e-3),
        (INT8, 0.99, 5e-3),
        (INT4, 0.99, 5e-2),
        (ACTIVATIONS, 0.99, 2e-2),
    ],
    ids=str,
)
def test_answers_stay_near_those_of_fp32(
    compiled: Compile, precisions: Precisions, cosine: float, kl: float
) -> None:
    """Bounds are for single images; the export's parity check judges the mean of many."""
    exact, other = compiled(EXACT), compiled(precisions)
    engines = exact.engine(), other.engine()
    for question in QUESTIONS[8:10]:
        image = exact.source.pixels(question)
        ours, theirs = (engine.vision.encode(image).astype(np.float64) for engine in engines)
        lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        assert ((ours * theirs).sum(-1) / lengths).min() > cosine
        expected = logits_along(engines[0], exact.source, question)
        tokens = expected.argmax(-1).tolist()
        found = logits_along(engines[1], exact.source, question, tokens)
        assert divergence(expected, found) < kl
        assert not np.array_equal(expected, found)


@pytest.mark.parametrize("precisions", [EXACT, FLOATS16, INT8], ids=str)
def test_a_rewound_cache_of_any_type_goes_on_where_it_was_cut(
    compiled: Compile, precisions: Precisions
) -> None:
    language = compiled(precisions).engine().language
    embeds = language.embed(list(range(20, 60)))
    language.prefill(embeds[:30])
    expected = language.prefill(embeds[30:])
    language.prefill(embeds[:5])  # overwritten below: the cache is cut back behind 30 tokens
    language.rewind(30)
    again = language.prefill(embeds[30:])
    assert divergence(expected[None], again[None]) < 1e-4


def test_the_cache_has_the_type_the_file_names(compiled: Compile) -> None:
    core = openvino_core()

    def cache(precisions: Precisions) -> str:
        model = core.compile_model(compiled(precisions).file("decoder"), "CPU")
        return str(model.get_property("KV_CACHE_PRECISION").get_type_name())

    found = [cache(one) for one in (EXACT, FLOATS16, BFLOATS, INT8, INT4)]
    assert found == ["f32", "f16", "f16", "f16", "f16"]


@pytest.mark.parametrize("precisions", [INT8, INT4], ids=str)
def test_the_engine_joins_layers_of_the_file_and_its_logits_stay(
    compiled: Compile, tiny: Source, precisions: Precisions, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(engine, "join_layers", lambda model: saved.append(join_layers(model)))
        compiled(precisions).engine()
    assert saved == [3 * tiny.language.layers]

    path = compiled(precisions).file("decoder")
    apart, joined = (openvino_core().read_model(path) for _ in range(2))
    assert join_layers(joined) == 3 * tiny.language.layers  # q, k, v and gate, up
    inputs = {
        "inputs_embeds": np.random.default_rng(0).normal(size=(1, 7, tiny.language.hidden_size)),
        "attention_mask": np.ones((1, 7), np.int64),
        "position_ids": np.arange(7)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    logits = [
        openvino_core().compile_model(model, "CPU")(inputs)["logits"] for model in (apart, joined)
    ]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5 * np.abs(logits[0]).max())


def test_int8_activations_round_everything_but_pixels(compiled: Compile) -> None:
    model = openvino_core().read_model(compiled(ACTIVATIONS).file("vision_encoder"))
    [pixels] = model.inputs
    readers = [port.get_node().get_type_name() for port in pixels.get_target_inputs()]
    assert readers == ["Convolution"]
    rounded = [
        port.get_node().get_type_name()
        for node in model.get_ops()
        if node.get_type_name() == "FakeQuantize"
        for port in node.output(0).get_target_inputs()
    ]
    assert "MatMul" in rounded
    assert "Convolution" not in rounded


def test_every_rounded_layer_can_be_a_convolution(compiled: Compile) -> None:
    """On a CPU without VNNI half the time is in it; zero must be a step for that."""
    model = openvino_core().read_model(compiled(ACTIVATIONS).file("vision_encoder"))
    layers = sum(node.get_type_name() == "MatMul" for node in model.get_ops())
    assert convolve_layers(model) == layers > 0
    kinds = {
        source.get_node().get_type_name()
        for node in model.get_ops()
        if node.get_type_name() == "ScaledDotProductAttention"
        for source in node.input_values()
    }
    assert "FakeQuantize" not in kinds


def test_int8_activations_round_no_image_that_is_made_smaller(tiny: Source, tmp_path: Path) -> None:
    """As the baseline `downsampled` does: two products with one matrix, then the patches."""
    openvino = import_openvino()
    from openvino import opset13 as ops

    generator = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    image = pixels = ops.parameter([1, 3, 16, 16], openvino.Type.f32)
    matrix = ops.constant(weight(16, 8))
    for _ in range(2):
        image = ops.transpose(ops.matmul(image, matrix, False, False), np.array([0, 1, 3, 2]))
    patches = ops.convolution(image, weight(32, 3, 4, 4), [4, 4], [0, 0], [0, 0], [1, 1])
    rows = ops.reshape(patches, np.array([1, 4, 32]), False)
    model = openvino.Model([ops.matmul(ops.relu(rows), weight(32, 32), False, True)], [pixels])
    ranges = write_ranges(model, weight(1, 3, 16, 16), tmp_path / "ranges.npz")
    request = request_for(tiny, tmp_path, "vision_encoder", "int8")
    model = int8_activations(model, replace(request, calibration=ranges))
    rounded = {
        one.get_friendly_name()
        for one in model.get_ops()
        for value in one.input_values()
        if value.get_node().get_type_name() == "FakeQuantize"
    }
    layers = [one for one in model.get_ordered_ops() if one.get_type_name() == "MatMul"]
    assert [one.get_friendly_name() in rounded for one in layers] == [False, False, True]
    assert not any("onvolution" in name for name in rounded)


def test_int8_activations_without_calibration_images_are_refused(
    tiny: Source, tmp_path: Path
) -> None:
    (tmp_path / "onnx").symlink_to(tiny.root / "onnx")
    with pytest.raises(ExportError, match="calibration"):
        TARGET.compile(request_for(tiny, tmp_path, "vision_encoder", "int8"))
    assert not (tmp_path / "openvino").exists()


def test_int4_names_the_widths_that_no_group_divides(tiny: Source, tmp_path: Path) -> None:
    openvino = import_openvino()
    from openvino import opset13 as ops

    wide = ops.parameter([-1, 40], openvino.Type.f32)
    model = openvino.Model([ops.matmul(wide, np.ones((40, 8), np.float32), False, False)], [wide])
    with pytest.raises(ExportError, match=r"multiple of 32.*\[40\]"):
        int4_weights(model, request_for(tiny, tmp_path, "decoder", "int4"))


PROBE = """
import socket, sys

def refused(*_):
    raise SystemExit("a socket was opened")

socket.socket.connect = socket.getaddrinfo = refused
from laco_export.targets.openvino_quantize import int8_weights
from laco_runtimes.engines.openvino import openvino_core
for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
    del sys.modules[name]
sys.modules["torch"] = None
model = openvino_core().read_model(sys.argv[1])
int8_weights(model, None)
assert "nncf" in sys.modules
print("telemetry", sys.modules.get("openvino_telemetry"))
"""


def test_nncf_needs_no_torch_and_reports_to_nobody(tiny: Source) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tiny.root / "onnx" / "embed_tokens.onnx")],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "telemetry None"
