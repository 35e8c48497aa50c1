"""Logits of several positions from one pass, and what is done to a graph for it in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laco_runtimes.bundle import Bundle, open_bundle
from laco_runtimes.engines import ENGINES, load_engine
from laco_runtimes.engines.base import Floats, LanguageModel, LoadedEngine, LoadRequest
from laco_runtimes.engines.onnxruntime_graph import keep_positions as keep_onnx_positions
from laco_runtimes.errors import EngineError

WITH_STATE = "openvino with state"
"""As on a GPU, and on a CPU without paged attention."""

HERE = ("onnxruntime", "openvino", WITH_STATE)

IDS = [5, 77, 12, 200, 3, 3, 149, 8, 61, 33]
PROMPT, DRAFT = IDS[:4], IDS[4:]

TOLERANCE = 1e-4
"""Relative to the largest logit: sums of another order."""


@pytest.fixture(scope="module", params=HERE)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(kind: str, bundle_for: Callable[[str], Path]) -> Bundle:
    target = kind.partition(" ")[0]
    pytest.importorskip(ENGINES[target].package)
    return open_bundle(bundle_for(target))


def loaded(bundle: Bundle, device: str = "cpu") -> LoadedEngine:
    variant = bundle.variant("laco")
    return load_engine(LoadRequest(bundle.root, bundle.manifest, variant, device))


def loaded_with_state(bundle: Bundle) -> LoadedEngine:
    from laco_runtimes.engines import openvino

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino, "page_attention", lambda model, layers: None)
        engine = loaded(bundle)
    assert type(engine.language).__name__ == "StatefulLanguage"
    return engine


@pytest.fixture(scope="module")
def engine(kind: str, bundle: Bundle) -> LoadedEngine:
    return loaded_with_state(bundle) if kind == WITH_STATE else loaded(bundle)


@pytest.fixture
def language(engine: LoadedEngine) -> LanguageModel:
    engine.language.rewind(0)
    return engine.language


def assert_close(logits: Floats, expected: Floats) -> None:
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() < TOLERANCE * np.abs(expected).max()


def by_steps(language: LanguageModel, tokens: Sequence[int]) -> Floats:
    language.rewind(0)
    language.prefill(language.embed(PROMPT))
    return np.stack([language.step(token) for token in tokens])


def test_engines_of_a_cpu_score_rewind_and_batch_tiles(engine: LoadedEngine) -> None:
    can = engine.capabilities
    assert (can.scores, can.rewinds, can.batches_tiles) == (True, True, True)


@pytest.mark.parametrize("count", [1, 2, len(DRAFT)])
def test_scores_are_what_steps_give(language: LanguageModel, count: int) -> None:
    expected = by_steps(language, DRAFT[:count])
    language.rewind(0)
    language.prefill(language.embed(PROMPT))
    assert_close(language.score(DRAFT[:count]), expected)
    assert language.length == len(PROMPT) + count


def test_a_draft_that_is_cut_behind_its_second_token_goes_on_from_there(
    language: LanguageModel,
) -> None:
    expected = by_steps(language, [*DRAFT[:2], 99])
    language.rewind(0)
    language.prefill(language.embed(PROMPT))
    language.score(DRAFT)
    language.rewind(len(PROMPT) + 2)
    assert_close(language.step(99), expected[-1])


def test_scores_of_several_lengths_in_turn_and_prefills_between_them(
    language: LanguageModel,
) -> None:
    expected = by_steps(language, DRAFT)
    language.rewind(0)
    language.prefill(language.embed(PROMPT))
    first = language.score(DRAFT[:2])
    second = language.score(DRAFT[2:5])
    last = language.prefill(language.embed(DRAFT[5:]))
    assert_close(np.concatenate([first, second, last[None]]), expected)


def test_scores_are_not_overwritten_by_the_next_call(language: LanguageModel) -> None:
    language.prefill(language.embed(PROMPT))
    scores = language.score(DRAFT[:3])
    kept = scores.copy()
    language.score(DRAFT[3:])
    assert np.array_equal(scores, kept)


def test_a_long_dialogue_of_drafts_that_are_cut_again_and_again(language: LanguageModel) -> None:
    said = [*PROMPT]
    language.prefill(language.embed(PROMPT))
    for number in range(40):  # forgets 120 tokens, which is more than stay under a mask
        language.score([(7 * number + place) % 300 for place in range(5)])
        said += [(7 * number + place) % 300 for place in range(2)]
        language.rewind(len(said))
    found = language.step(99)
    language.rewind(0)
    assert_close(found, language.prefill(language.embed([*said, 99])))


def test_a_context_can_be_filled_behind_forgotten_tokens(
    bundle: Bundle, language: LanguageModel
) -> None:
    longest = bundle.manifest.language.max_positions
    ids = [(3 * place) % 300 for place in range(longest)]
    language.prefill(language.embed([*ids[:9], *DRAFT]))
    language.rewind(9)
    language.prefill(language.embed(ids[9:-1]))
    found = language.step(ids[-1])
    assert language.length == longest
    language.rewind(0)
    assert_close(found, language.prefill(language.embed(ids)))


def test_a_token_that_the_model_does_not_have_is_an_engine_error(language: LanguageModel) -> None:
    with pytest.raises(EngineError, match=r"embedding tokens with .* failed: .*100000"):
        language.embed([5, 100000])


def test_more_tokens_than_positions_are_an_engine_error(
    bundle: Bundle, language: LanguageModel
) -> None:
    longest = bundle.manifest.language.max_positions
    with pytest.raises(EngineError, match=f"more than the {longest} the model has"):
        language.prefill(language.embed([1] * (longest + 1)))
    assert language.length == 0


# OpenVINO


@pytest.fixture(scope="module")
def openvino_bundle(bundle_for: Callable[[str], Path]) -> Bundle:
    pytest.importorskip("openvino")
    return open_bundle(bundle_for("openvino"))


def read(path: Path) -> Any:
    from laco_runtimes.engines.openvino import openvino_core

    return openvino_core().read_model(path)


def test_a_changed_decoder_has_the_last_mlp_and_head_behind_its_slices(
    openvino_bundle: Bundle,
) -> None:
    from laco_runtimes.engines.openvino_graph import FIRST_LOGIT, keep_positions

    model = read(openvino_bundle.root / openvino_bundle.manifest.decoder)
    assert keep_positions(model)
    assert FIRST_LOGIT in model.inputs[-1].names
    dense, stack, seen = 0, [model.output("logits").get_node()], set()
    while stack:
        node = stack.pop()
        if node.get_type_name() == "Slice" or node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        weighted = node.get_type_name() == "MatMul"
        dense += weighted
        stack += [node.input_value(port).get_node() for port in range(node.get_input_size())]
        assert node.get_type_name() != "ScaledDotProductAttention"
    assert dense == 5  # out of attention, gate, up, down, head


def test_a_changed_decoder_gives_the_logits_of_the_file(openvino_bundle: Bundle) -> None:
    from laco_runtimes.engines.openvino import openvino_core

    decoder = openvino_bundle.root / openvino_bundle.manifest.decoder
    language = loaded(openvino_bundle).language
    embeds = language.embed(IDS)
    plain = openvino_core().compile_model(decoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = plain(
        {
            "inputs_embeds": embeds[None],
            "attention_mask": np.ones((1, len(IDS)), np.int64),
            "position_ids": np.arange(len(IDS), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )["logits"]
    assert expected.shape[1] == 1
    assert_close(language.prefill(embeds), expected[0, 0])


@pytest.mark.parametrize("forgotten", [0, 2, 64])
def test_rewinds_agree_however_many_tokens_stay_under_a_mask(
    openvino_bundle: Bundle, forgotten: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laco_runtimes.engines import openvino_stateful

    monkeypatch.setattr(openvino_stateful, "MAX_FORGOTTEN", forgotten)
    language = loaded_with_state(openvino_bundle).language
    expected = language.prefill(language.embed(IDS))
    language.rewind(0)
    language.prefill(language.embed([*IDS[:6], 99, 98]))
    language.rewind(6)
    language.prefill(language.embed([*IDS[6:8], 97]))
    language.rewind(8)
    language.step(96)
    language.rewind(4)  # in front of all that is forgotten
    assert_close(language.prefill(language.embed(IDS[4:])), expected)


def test_what_a_failed_pass_left_in_the_state_is_not_built_on(openvino_bundle: Bundle) -> None:
    language = loaded_with_state(openvino_bundle).language
    expected = language.prefill(language.embed(PROMPT))
    with pytest.raises(EngineError, match="decoding with OpenVINO failed"):
        language.prefill(np.zeros((2, 7), np.float32))
    with pytest.raises(EngineError, match="is not known"):
        language.rewind(2)
    language.rewind(0)
    assert_close(language.prefill(language.embed(PROMPT)), expected)


def test_a_graph_without_the_slices_stays_as_it_is(openvino_bundle: Bundle) -> None:
    from laco_runtimes.engines.openvino_graph import keep_positions

    model = read(openvino_bundle.root / openvino_bundle.manifest.embed_tokens)
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    assert not keep_positions(model)
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before


def test_a_device_where_it_was_not_tried_scores_nothing(
    openvino_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laco_runtimes.engines import openvino

    class Core:
        """OpenVINO whose GPU is its CPU."""

        available_devices = ("CPU", "GPU")
        core = openvino.openvino_core()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.core, name)

        def get_property(self, device: str, name: str) -> Any:
            return self.core.get_property("CPU", name)

        def compile_model(self, graph: Any, device: str, config: dict[str, str]) -> Any:
            return self.core.compile_model(graph, "CPU", config)

    monkeypatch.setattr(openvino, "openvino_core", Core)
    engine = loaded(openvino_bundle, "GPU")
    assert not engine.capabilities.scores
    engine.language.prefill(engine.language.embed(PROMPT))
    with pytest.raises(EngineError, match="the last position alone"):
        engine.language.score(DRAFT)
    assert engine.language.length == len(PROMPT)


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16", "i8", "u8"])
def test_rows_of_the_table_are_what_an_inference_looks_up(stored: str) -> None:
    openvino = pytest.importorskip("openvino")
    from laco_runtimes.engines.openvino import openvino_core
    from laco_runtimes.engines.openvino_graph import embedding_rows

    model = openvino.Model([table(stored)], [PARAMETERS.pop()])
    embed = embedding_rows(model)
    assert embed is not None
    ids = [4, 0, 11, 4, 7]
    [expected] = (
        openvino_core()
        .compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([np.array([ids])])
        .values()
    )
    assert np.array_equal(embed(ids), expected[0])
    assert embed(ids).dtype == np.float32
    with pytest.raises(IndexError, match="from 0 to 11"):
        embed([-1])


def test_a_graph_that_does_more_than_look_up_is_left_to_an_inference() -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    from laco_runtimes.engines.openvino_graph import embedding_rows

    scaled = ops.multiply(table("f32"), np.float32(3))
    assert embedding_rows(openvino.Model([scaled], [PARAMETERS.pop()])) is None


PARAMETERS: list[Any] = []
"""Of the last table made: a model wants them apart."""


def table(stored: str) -> Any:
    """Gather of 12 rows of 6 that are stored in a type."""
    import openvino
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    kind = getattr(openvino.Type, stored)
    if stored in ("i8", "u8"):
        whole = random.integers(-127 if stored == "i8" else 0, 127, (12, 6)).astype(kind.to_dtype())
        half = ops.convert(ops.constant(whole), "f16")
        if stored == "u8":
            zero = ops.constant(random.integers(0, 127, (12, 1)).astype(np.uint8))
            half = ops.subtract(half, ops.convert(zero, "f16"))
        scale = ops.constant(random.uniform(0.01, 0.02, (12, 1)).astype(np.float16))
        rows = ops.convert(ops.multiply(half, scale), "f32")
    else:
        tensor = openvino.Tensor(kind, openvino.Shape([12, 6]))
        bits = random.normal(size=(12, 6)).astype(np.float32)
        if stored == "bf16":
            tensor.data.view(np.uint16)[...] = bits.view(np.uint32) >> 16
        else:
            tensor.data[...] = bits
        rows = openvino.op.Constant(tensor, shared_memory=False)
        if stored != "f32":
            rows = ops.convert(rows, "f32")
    ids = ops.parameter([-1, -1], openvino.Type.i64, name="input_ids")
    PARAMETERS[:] = [ids]
    return ops.gather(rows, ids, ops.constant(0, openvino.Type.i64))


# ONNX Runtime


def last_rows(*, packed: bool = False, start: str = "last", axis: int = 1) -> bytes:
    """A graph that keeps the last row of its input, and uses the -1 of that once more."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    numbers = {start: -1, "end": 2**62, "axis": axis}
    constants = [
        helper.make_tensor(name, kinds.INT64, [1], [value])
        if packed
        else onnx.numpy_helper.from_array(np.array([value]), name)
        for name, value in numbers.items()
    ]
    nodes = [
        helper.make_node("Slice", ["x", start, "end", "axis"], ["y"]),
        helper.make_node("Unsqueeze", ["x", start], ["z"]),
    ]
    x, y = (helper.make_tensor_value_info(name, kinds.FLOAT, ["batch", "rows", 2]) for name in "xy")
    z = helper.make_tensor_value_info("z", kinds.FLOAT, ["batch", "rows", 2, 1])
    graph = helper.make_graph(nodes, "rows", [x], [y, z], constants)
    opset = [helper.make_opsetid("", 23)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


@pytest.mark.parametrize("packed", [False, True])
def test_the_start_of_an_onnx_slice_may_be_given(packed: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    opened = keep_onnx_positions(last_rows(packed=packed))
    assert opened is not None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        opened.model, options, providers=["CPUExecutionProvider"]
    )
    rows = np.arange(10, dtype=np.float32).reshape(1, 5, 2)
    assert np.array_equal(session.run(None, {"x": rows})[0], rows[:, -1:])
    given = {"x": rows, opened.first_logit: np.array([-3])}
    last, apart = session.run(None, given)
    assert np.array_equal(last, rows[:, -3:])
    assert np.array_equal(apart, rows[..., None])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: last_rows(start="first_logit"), id="the name is taken"),
        pytest.param(lambda: last_rows(axis=0), id="another axis"),
        pytest.param(lambda: last_rows()[:-40], id="cut off"),
        pytest.param(lambda: b"", id="empty"),
        pytest.param(lambda: b"this is no graph", id="no graph"),
    ],
)
def test_other_onnx_graphs_are_left_alone(model: Callable[[], bytes]) -> None:
    assert keep_onnx_positions(model()) is None


def in_8_bits(model: Any) -> None:
    """Give a decoder a head whose weights are stored as an export stores them."""
    from openvino import opset13 as ops

    head = model.output("logits").get_node().input_value(0).get_node()
    width, vocabulary = (
        int(port.get_partial_shape()[-1].get_length())
        for port in (head.input_value(0), head.output(0))
    )
    stored = np.random.default_rng(3).integers(-127, 128, (vocabulary, width)).astype(np.int8)
    scale = ops.constant(np.full((vocabulary, 1), 0.01, np.float32))
    weight = ops.multiply(ops.convert(ops.constant(stored), "f32"), scale)
    head.output(0).replace(ops.matmul(head.input_value(0), weight, False, True).output(0))


def test_a_head_that_became_a_convolution_scores_one_token_and_several(
    openvino_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laco_runtimes.engines import openvino, openvino_head

    joined = openvino.join_layers

    def prepared(model: Any) -> int:
        in_8_bits(model)
        return joined(model)

    monkeypatch.setattr(openvino, "join_layers", prepared)

    def asked(*, replaced: bool) -> list[Floats]:
        monkeypatch.setattr(openvino_head, "gemm_is_slow", lambda core: replaced)
        language: LanguageModel = loaded(openvino_bundle).language
        first = language.prefill(language.embed([5, 77, 12]))
        several = language.score([200, 3, 149, 8])
        language.rewind(4)
        return [first, *several, language.step(3), *language.score([149, 8])]

    dense, convolved = asked(replaced=False), asked(replaced=True)
    assert len(dense) == len(convolved) == 8
    for one, two in zip(dense, convolved, strict=True):
        assert one.shape == two.shape == (openvino_bundle.manifest.language.vocab_size,)
        assert 0 < np.abs(one - two).max() < 1e-3 * np.abs(one).max()
    assert np.abs(convolved[2] - convolved[5]).max() < 1e-3 * np.abs(convolved[2]).max()
