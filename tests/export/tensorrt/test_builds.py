"""Checks 1 and 3 of the TensorRT path, on the real parser and builder of TensorRT-RTX, without GPU:
every graph in every precision is parsed and built for Ampere, Ada and Blackwell.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from laco_deploy.exporting import BASELINES
from laco_export.half import HalfName, to_half
from laco_export.targets import tensorrt as target
from laco_export.targets.base import CompileRequest
from laco_export.targets.tensorrt_audit import check_graph
from laco_runtimes import graphs
from laco_runtimes.errors import EngineError, ExportError
from laco_runtimes.graphs import DecoderForm, GraphSpec
from laco_runtimes.manifest import VisionFacts
from laco_runtimes.plan_builder import BuildSettings, InputRange, build_plan
from laco_runtimes.plan_products import PRODUCTS
from laco_runtimes.plan_profiles import make_profiles
from tests.export.flavour_engines import FACTS
from tests.export.tensorrt.conftest import CAPACITY, Tiny

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX, which builds without a GPU")

RTX = PRODUCTS["tensorrt-rtx"]
FOUR = ("SM80", "SM86", "SM89", "SM120")

DEFAULT = [
    *(("vision_encoder", one) for one in target.VISION),
    *(("decoder_static", one) for one in target.LANGUAGE),
    *(("embed_tokens", one) for one in ("fp16", "int8")),
]
FULL = [
    *(("decoder_concat", one) for one in ("fp16", "bf16", "int8")),
    *((f"vision_encoder.{one}", two) for one in BASELINES for two in ("fp16", "int8")),
    ("embed_tokens", "bf16"),
]


@pytest.mark.parametrize(
    ("module", "precision"),
    [*DEFAULT, *(pytest.param(*one, marks=pytest.mark.full) for one in FULL)],
)
def test_check_1_and_3_parses_and_builds_for_four_gpus(
    tiny: Tiny, module: str, precision: str
) -> None:
    plan = tiny.plan(module, precision)
    recipe = (target.VISION if module.startswith("vision") else target.LANGUAGE)[precision]
    assert recipe.gpus == (("SM89", "SM120") if precision == "fp8" else FOUR)
    assert len(plan.data) > 100_000
    assert [one for one in plan.warnings if "Int64 binding" not in one] == []


def test_weights_in_fewer_bits_make_smaller_plans(tiny: Tiny) -> None:
    sizes = [
        tiny.plan("decoder_static", precision).weight_bytes or 0
        for precision in ("int4", "int8", "fp16")
    ]
    assert sizes[0] < 0.75 * sizes[1] < 0.5 * sizes[2]


def test_check_3_float8_is_not_built_for_ampere(tiny: Tiny) -> None:
    with pytest.raises(EngineError, match="Cannot compile for target"):
        build(tiny.compiled("vision_encoder", "fp8"), tiny, ("SM80",))


def attention(path: Path, kind: int) -> Path:
    """One attention of the size of ViT-L/14-448: 16 heads of 64, 1,024 tokens."""
    shape = (1, 16, 1024, 64)
    nodes = [helper.make_node("Attention", ["q", "k", "v"], ["y"])]
    if kind == TensorProto.FLOAT:
        nodes = [
            helper.make_node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["q", "t"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["weights"]),
            helper.make_node("MatMul", ["weights", "v"], ["y"]),
        ]
    save(path, nodes, [(name, shape, kind) for name in "qkv"], [("y", shape, kind)])
    return path


def test_check_4_attention_that_is_fused_keeps_no_scores(tmp_path: Path) -> None:
    scores = 16 * 1024 * 1024 * 2  # bytes, in fp16
    settings = BuildSettings((), compute_capabilities=("SM89",))
    fused = build_plan(RTX, attention(tmp_path / "a.onnx", TensorProto.FLOAT16), settings)
    assert (fused.scratch_bytes or 0) < scores
    plain = build_plan(RTX, attention(tmp_path / "b.onnx", TensorProto.FLOAT), settings)
    assert (plain.scratch_bytes or 0) >= 2 * scores


def test_a_gpu_that_rtx_does_not_know_is_named(tiny: Tiny) -> None:
    with pytest.raises(EngineError, match=r"cannot build for GPU SM87\. Choose among: .*SM120"):
        build(tiny.compiled("vision_encoder", "fp16"), tiny, ("SM87",))


def test_check_3_attention_in_float32_has_no_kernel_and_says_what_to_do(tiny: Tiny) -> None:
    """What `decomposable` off means: a plan that builds has fused attention."""
    with pytest.raises(EngineError, match=r"not supported by a dedicated kernel.*fp16 and bf16"):
        build(tiny.fp32("vision_encoder"), tiny, FOUR)


def build(path: Path, tiny: Tiny, gpus: tuple[str, ...]) -> None:
    profiles = make_profiles(tiny.spec("vision_encoder"), CAPACITY)
    build_plan(RTX, path, BuildSettings(profiles, compute_capabilities=gpus))


def test_progress_counts_the_steps_of_each_phase_and_can_end_a_build(tiny: Tiny) -> None:
    path = tiny.compiled("embed_tokens", "fp16")
    settings = BuildSettings(make_profiles(tiny.spec("embed_tokens"), CAPACITY))
    seen: list[tuple[str, int, int]] = []
    build_plan(RTX, path, settings, lambda *step: seen.append(step) is None)
    assert seen
    assert all(1 <= done <= total for _, done, total in seen)
    with pytest.raises(EngineError, match="was ended in phase"):
        build_plan(RTX, path, settings, lambda *step: False)


def test_two_profiles_build_and_a_limit_of_workspace_and_a_level_are_taken(tiny: Tiny) -> None:
    path = tiny.compiled("decoder_static", "fp16")
    spec = tiny.spec("decoder_static")
    one = tiny.plan("decoder_static", "fp16")
    two = build_plan(
        RTX,
        path,
        BuildSettings(
            make_profiles(spec, CAPACITY, apart=True),
            optimization_level=1,
            workspace_bytes=2**28,
            compute_capabilities=("SM89",),
        ),
    )
    assert two.weight_bytes is not None
    assert one.weight_bytes is not None
    assert two.weight_bytes > 1.5 * one.weight_bytes  # RTX stores them for each profile


def test_check_7_a_profile_must_be_of_the_dynamic_inputs_and_fit_them(tiny: Tiny) -> None:
    path = tiny.compiled("embed_tokens", "fp16")
    with pytest.raises(EngineError, match="differ in 'input_ids'"):
        build_plan(RTX, path, BuildSettings(((),)))
    wrong = InputRange("input_ids", (1, 1, 1), (1, 1, 1), (1, 1, 1))
    with pytest.raises(EngineError, match="profile goes from"):
        build_plan(RTX, path, BuildSettings(((wrong,),)))


def test_a_file_that_is_not_there_or_is_not_onnx_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"does not take 'none\.onnx'"):
        build_plan(RTX, tmp_path / "none.onnx", BuildSettings(((),)))
    (tmp_path / "bytes.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"does not take 'bytes\.onnx'"):
        build_plan(RTX, tmp_path / "bytes.onnx", BuildSettings(((),)))


def test_check_1_an_operator_that_is_not_taken_is_named_with_its_node(tmp_path: Path) -> None:
    path = tmp_path / "determinant.onnx"
    node = helper.make_node("Det", ["x"], ["y"], name="the_node")
    save(path, [node], [("x", (4, 4), TensorProto.FLOAT)], [("y", (), TensorProto.FLOAT)])
    with pytest.raises(EngineError, match=r"Det \(node 'the_node'\)"):
        build_plan(RTX, path, BuildSettings(()))


def test_check_1_an_input_that_the_parser_drops_is_an_error(tmp_path: Path) -> None:
    """`nonpad_kv_seqlen` of Attention: without a mask the answer would be wrong, silently."""
    heads = (1, 2, 8, 16)
    path = tmp_path / "dropped.onnx"
    save(
        path,
        [helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"], is_causal=1)],
        [
            *((name, heads, TensorProto.FLOAT16) for name in "qkv"),
            ("lengths", (1,), TensorProto.INT64),
        ],
        [("y", heads, TensorProto.FLOAT16)],
    )
    with pytest.raises(EngineError, match=r"leaves something out.*[Uu]nused [Ii]nput"):
        build_plan(RTX, path, BuildSettings(()))


def test_check_6_two_float_types_at_one_operator_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixed.onnx"
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["a", "b"], ["y"], name="mixed")],
            "g",
            [
                helper.make_tensor_value_info("a", TensorProto.FLOAT16, (4, 4)),
                helper.make_tensor_value_info("b", TensorProto.FLOAT, (4, 4)),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT16, (4, 4))],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
    )
    onnx.save(model, path)
    with pytest.raises(EngineError, match="mixed"):
        build_plan(RTX, path, BuildSettings(()))


def test_int8_activations_without_images_say_what_to_give(tiny: Tiny) -> None:
    request = tiny.request("vision_encoder", "int8")
    without = type(request)(
        **{name: getattr(request, name) for name in request.__slots__} | {"calibration": None}
    )
    with pytest.raises(ExportError, match="--calibration, or choose int8w or fp16"):
        target.compile_graph(without, "tensorrt-rtx")


def test_int4_in_the_old_flavour_says_what_to_choose(
    flavours: dict[str, tuple[Path, GraphSpec]], tmp_path: Path
) -> None:
    source, spec = flavours["concat"]
    root = source.parent
    form = DecoderForm("concat", "float16", CAPACITY)
    request = CompileRequest(
        root=root,
        onnx=source.name,
        spec=spec,
        language=FACTS,
        vision=VisionFacts(model_type="x", blocks=1, width=1, image_size=1, patch_size=1),
        precision="int4",
        form=form,
    )
    with pytest.raises(ExportError, match="Choose int8, fp16 or bf16"):
        target.compile_graph(request, "tensorrt-rtx")
    assert not list(root.glob(".qdq.*"))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_check_1_and_3_the_flavour_for_old_versions_builds_too(
    flavours: dict[str, tuple[Path, GraphSpec]], tmp_path: Path, half: HalfName
) -> None:
    source, _ = flavours["concat"]
    spec = graphs.decoder(FACTS, DecoderForm("concat", half))
    path = to_half(source, tmp_path / "decoder.onnx", half, spec)
    check_graph(path, old=True)
    settings = BuildSettings(make_profiles(spec, 32), compute_capabilities=FOUR)
    assert build_plan(RTX, path, settings).data


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, tuple[int, ...], int]],
    outputs: list[tuple[str, tuple[int, ...], int]],
    opset: int = 24,
) -> None:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in outputs],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)


def test_the_cache_of_a_decoder_has_the_type_of_its_precision(tiny: Tiny) -> None:
    for precision, dtype in target.CACHE_DTYPES.items():
        form = DecoderForm("static", dtype, CAPACITY)
        spec = graphs.decoder(tiny.job.language, form)
        model = onnx.load(tiny.compiled("decoder_static", precision), load_external_data=False)
        found = {one.name: one.type.tensor_type.elem_type for one in model.graph.input}
        expected = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[dtype]
        caches = [one.name for one in spec.inputs if one.name.startswith("past_key_values")]
        assert {found[name] for name in caches} == {expected}
        assert found["inputs_embeds"] == TensorProto.FLOAT
