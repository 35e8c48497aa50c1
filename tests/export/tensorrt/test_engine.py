"""The TensorRT engine on a fake GPU whose plans are run by ONNX Runtime: what the engine makes of
positions, masks, the cache and CUDA graphs, against transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import Qwen2ForCausalLM

from laco_runtimes import plan_profiles
from laco_runtimes.engines import tensorrt as engine
from laco_runtimes.engines.base import Floats, LoadedEngine, LoadRequest
from laco_runtimes.errors import ArgumentError, BundleError, EngineError, OutOfMemoryError
from laco_runtimes.graphs import DecoderForm, GraphSpec, cache_names, decoder, embed_tokens
from laco_runtimes.graphs import vision_encoder as vision_spec
from laco_runtimes.manifest import EngineFacts, FlavourName, Variant, VisionFacts
from laco_runtimes.plan_builder import BuildSettings, BuiltPlan
from laco_runtimes.plan_products import PRODUCTS, Product
from laco_runtimes.plans import PlanCache
from tests.export.flavour_engines import CAPACITY, FACTS, small_model
from tests.runtime.tensorrt.fake_trt import Arrays, FakeDevice, FakePlan, FakeTrt

SIDE, TOKENS = 4, 2
FLAVOURS: tuple[FlavourName, ...] = ("static", "concat")


@dataclass
class Rig:
    """A bundle folder, a device and a cache; each `load` is a fresh process as far as plans go."""

    root: Path
    request: LoadRequest
    device: FakeDevice = field(default_factory=FakeDevice)
    builds: list[str] = field(default_factory=list)
    settings: dict[str, BuildSettings] = field(default_factory=dict)
    product: Product = PRODUCTS["tensorrt-rtx"]

    def __post_init__(self) -> None:
        self.trt = FakeTrt(self.device)

    def load(self) -> LoadedEngine:
        cache = PlanCache(self.root.parent / "plans")
        return engine.load_on(self.device, self.trt, self.product, cache, self.request)  # type: ignore[arg-type]

    def build(
        self, product: Product, path: Path, settings: BuildSettings, progress: object
    ) -> BuiltPlan:
        """What takes the place of `build_plan`: the plan is the name of the graph."""
        self.builds.append(path.stem)
        self.settings[path.stem] = settings
        return BuiltPlan(path.stem.encode(), 0.0, None, None, None, ())


@pytest.fixture(scope="session")
def model() -> Qwen2ForCausalLM:
    return small_model()


@pytest.fixture(params=FLAVOURS)
def rig(
    request: pytest.FixtureRequest,
    flavours: dict[str, tuple[Path, GraphSpec]],
    model: Qwen2ForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Rig:
    flavour: FlavourName = request.param
    root = tmp_path / "bundle"
    root.mkdir()
    write_embedding(root / "embed_tokens.onnx", model)
    write_encoder(root / "vision_encoder.onnx")
    (root / "decoder.onnx").write_bytes(b"in place of " + flavour.encode())
    facts = EngineFacts(
        target="tensorrt-rtx",
        precision=dict.fromkeys(("vision_encoder", "embed_tokens", "decoder"), "fp32"),
        decoder_flavour=flavour,
        cache_dtype="float32",
        cache_capacity=CAPACITY,
        language=FACTS,
        vision=VisionFacts(model_type="x", blocks=1, width=8, image_size=SIDE, patch_size=2),
        embed_tokens="embed_tokens.onnx",
        decoder="decoder.onnx",
    )
    variant = Variant(
        name="laco",
        mergers=(),
        merged_grid=(1, TOKENS),
        vision_encoder="vision_encoder.onnx",
        latency_only=False,
    )
    made = Rig(root, LoadRequest(root, facts, variant, "auto"))
    form = DecoderForm(flavour, capacity=CAPACITY)
    names = (cache_names(FACTS.layers, kind) for kind in ("present", "past_key_values"))
    plans: dict[str, tuple[GraphSpec, Path, dict[str, str]]] = {
        "embed_tokens": (embed_tokens(FACTS.hidden_size), root / "embed_tokens.onnx", {}),
        "vision_encoder": (
            vision_spec(SIDE, TOKENS, FACTS.hidden_size),
            root / "vision_encoder.onnx",
            {},
        ),
        "decoder": (
            decoder(FACTS, form),
            flavours[flavour][0],
            dict(zip(*names, strict=True)) if flavour == "static" else {},
        ),
    }
    for name, (spec, path, aliases) in plans.items():
        made.trt.plans[name.encode()] = FakePlan(spec, OnnxRun(path), aliases)
    monkeypatch.setattr(engine, "build_plan", made.build)
    return made


class OnnxRun:
    """Computes a graph with ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._names = [one.name for one in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))


def write_embedding(path: Path, model: Qwen2ForCausalLM) -> None:
    table = model.get_input_embeddings().weight.detach().numpy()
    save(path, [helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"])], table)


def write_encoder(path: Path) -> None:
    """[tiles, 3, S, S] -> [tiles, N', D]: the pixels of a tile, times a number for each token."""
    weight = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, TOKENS * FACTS.hidden_size))
    nodes = [
        helper.make_node("Reshape", ["pixel_values", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "table"], ["wide"]),
        helper.make_node("Reshape", ["wide", "apart"], ["image_features"]),
    ]
    shapes = {"flat": [0, -1], "apart": [0, TOKENS, FACTS.hidden_size]}
    save(path, nodes, weight.astype(np.float32), shapes)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    table: Floats,
    shapes: dict[str, list[int]] | None = None,
) -> None:
    source, kind, rank = (
        ("pixel_values", TensorProto.FLOAT, 4) if shapes else ("input_ids", TensorProto.INT64, 2)
    )
    result = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(source, kind, [None] * rank)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, [None] * 3)],
        [
            numpy_helper.from_array(table, "table"),
            *(numpy_helper.from_array(np.array(v), k) for k, v in (shapes or {}).items()),
        ],
    )
    imports = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)


IDS = [int(one) for one in np.random.default_rng(5).integers(0, FACTS.vocab_size, 24)]


@pytest.fixture(scope="session")
def expected(model: Qwen2ForCausalLM) -> Floats:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([IDS])).logits[0].numpy())  # [24, V]


def same(found: Floats, wanted: Floats) -> None:
    assert np.abs(found - wanted).max() < 1e-4 * max(1.0, float(np.abs(wanted).max()))


def test_a_prompt_its_steps_and_a_second_turn_answer_as_transformers(
    rig: Rig, expected: Floats
) -> None:
    language = rig.load().language
    same(language.prefill(language.embed(IDS[:9])), expected[8])
    for place in range(9, 14):
        same(language.step(IDS[place]), expected[place])
    same(language.prefill(language.embed(IDS[14:20])), expected[19])
    same(language.step(IDS[20]), expected[20])
    assert language.length == 21


def test_rewinding_forgets_and_a_new_dialogue_starts_afresh(rig: Rig, expected: Floats) -> None:
    language = rig.load().language
    language.prefill(language.embed([1, 2, 3, *IDS[::-1]]))
    language.rewind(0)
    same(language.prefill(language.embed(IDS[:9])), expected[8])
    for token in (7, 8, 9):
        language.step(token)
    language.rewind(7)
    assert language.length == 7
    same(language.step(IDS[7]), expected[7])
    same(language.step(IDS[8]), expected[8])
    with pytest.raises(EngineError, match="cannot be rewound to 10"):
        language.rewind(10)


def test_it_says_that_it_has_logits_of_the_last_position_alone(rig: Rig) -> None:
    loaded = rig.load()
    can = loaded.capabilities
    assert (can.scores, can.rewinds, can.batches_tiles) == (False, True, True)
    loaded.language.prefill(loaded.language.embed(IDS[:9]))
    with pytest.raises(EngineError, match="the last position alone"):
        loaded.language.score(IDS[9:12])
    assert loaded.language.length == 9


def test_a_device_without_memory_is_an_error_of_memory_and_usable_again(
    rig: Rig, expected: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = rig.load().language
    upload = rig.device.upload

    def full(*args: Any) -> None:
        raise RuntimeError("cudaErrorMemoryAllocation: out of memory")

    monkeypatch.setattr(rig.device, "upload", full)
    with pytest.raises(OutOfMemoryError, match="decoding with TensorRT failed"):
        language.prefill(np.zeros((9, FACTS.hidden_size), np.float32))
    monkeypatch.setattr(rig.device, "upload", upload)
    language.rewind(0)
    same(language.prefill(language.embed(IDS[:9])), expected[8])


def test_a_long_prompt_goes_in_pieces(
    rig: Rig, expected: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_profiles, "MAX_PIECE", 4)
    language = rig.load().language
    same(language.prefill(language.embed(IDS[:15])), expected[14])
    ran = [call for call in rig.trt.calls if call[0] == "decoder" and call[1] == "execute"]
    assert len(ran) == 4


def test_the_cache_is_full_where_it_ends_and_not_before(rig: Rig) -> None:
    language = rig.load().language
    language.prefill(language.embed([1] * (CAPACITY - 1)))
    language.step(1)
    with pytest.raises(EngineError, match=f"{CAPACITY} of at most {CAPACITY} tokens, and 1 more"):
        language.step(1)
    with pytest.raises(EngineError, match="and 0 more"):
        language.prefill(np.zeros((0, FACTS.hidden_size), np.float32))
    language.rewind(0)
    with pytest.raises(EngineError, match=f"{CAPACITY + 1} more were asked for"):
        language.prefill(language.embed([1] * (CAPACITY + 1)))


def test_a_step_is_recorded_once_for_all_dialogues(rig: Rig, expected: Floats) -> None:
    language = rig.load().language
    for _ in range(2):
        language.rewind(0)
        language.prefill(language.embed(IDS[:3]))
        for place in range(3, 8):
            same(language.step(IDS[place]), expected[place])
    recorded = ["capture", *["launch"] * 9]
    static = rig.request.manifest.decoder_flavour == "static"
    assert rig.device.events == (recorded if static else [])


def test_an_error_in_a_step_leaves_a_cache_that_can_be_used_again(
    rig: Rig, expected: Floats
) -> None:
    language = rig.load().language
    language.prefill(language.embed(IDS[:5]))
    plan = rig.trt.plans[b"decoder"]
    good = plan.compute

    def fail(inputs: Arrays) -> Arrays:
        raise RuntimeError("the device is gone")

    plan.compute = fail
    with pytest.raises(EngineError, match="decoding with TensorRT failed: the device is gone"):
        language.step(IDS[5])
    plan.compute = good
    assert language.length == 5
    same(language.step(IDS[5]), expected[5])


def test_more_tiles_than_a_run_takes_go_in_several(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = plan_profiles.MAX_TILES + 3
    pixels = np.random.default_rng(1).normal(size=(tiles, 3, SIDE, SIDE)).astype(np.float32)
    found = rig.load().vision.encode(pixels)
    wanted = OnnxRun(rig.root / "vision_encoder.onnx")({"pixel_values": pixels})
    assert found.shape == (tiles, TOKENS, FACTS.hidden_size)
    same(found, wanted["image_features"])


def test_plans_are_built_at_the_first_load_and_found_at_the_second(rig: Rig) -> None:
    first = rig.load()
    assert sorted(rig.builds) == ["decoder", "embed_tokens", "vision_encoder"]
    assert "3 of 3 plans built now" in first.reason
    second = rig.load()
    assert len(rig.builds) == 3
    assert "plans built before" in second.reason
    assert "Fake GPU" in second.device


def test_another_graph_of_the_same_name_is_built_anew(rig: Rig) -> None:
    rig.load()
    (rig.root / "decoder.onnx.data").write_bytes(b"other weights")
    rig.load()
    assert rig.builds.count("decoder") == 2
    assert rig.builds.count("embed_tokens") == 1


def test_a_changed_plan_is_built_again_before_the_product_sees_it(rig: Rig) -> None:
    rig.load()
    for path in (rig.root.parent / "plans").glob("*.plan"):
        path.write_bytes(b"evil")
    rig.trt.calls.clear()
    rig.load()
    assert len(rig.builds) == 6


def test_two_profiles_where_kernels_are_chosen_at_the_build_and_one_on_a_jetson(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.load()
    assert len(rig.settings["decoder"].profiles) == 1
    assert rig.settings["decoder"].compute_capabilities == ("CURRENT",)
    rig.product = PRODUCTS["tensorrt"]
    rig.trt.plans[b"decoder"].profiles = 2
    rig.load()
    assert len(rig.settings["decoder"].profiles) == 2
    assert rig.settings["decoder"].compute_capabilities == ()
    assert rig.settings["decoder"].workspace_bytes is None
    small: Any = type(rig.device.facts)(0, "Orin", "8.7", "12.6", integrated=True)
    rig.device.facts = small
    rig.load()
    assert len(rig.settings["decoder"].profiles) == 1
    assert rig.settings["decoder"].workspace_bytes == 2**30


def test_what_the_engine_cannot_do_is_refused_before_anything_is_built(rig: Rig) -> None:
    request = rig.request
    with pytest.raises(ArgumentError, match="threads are for the CPU"):
        engine.load(LoadRequest(rig.root, request.manifest, request.variant, "auto", threads=2))
    other = request.manifest.model_copy(update={"decoder_flavour": "stateful"})
    with pytest.raises(BundleError, match="'stateful', and TensorRT runs static or concat"):
        engine.load(LoadRequest(rig.root, other, request.variant, "auto"))
    assert rig.builds == []
