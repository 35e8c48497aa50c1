"""Checks 3 and 4 of the TensorRT path at full size: AIMv2-L/14-448 merged after block 6, and a
language model of the shape of Qwen2.5-0.5B, random weights. Minutes and gigabytes: on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from laco_deploy.model import LacoConfig, LacoForConditionalGeneration
from laco_deploy.model.presets import LANGUAGE_PRESETS, VISION_PRESETS, find_preset
from laco_export.flavours import FLAVOURS
from laco_export.graphs import DecoderGraph, VisionGraph
from laco_export.half import to_half
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_export.protocols import LanguageBody
from laco_export.qdq import INT8, quantize
from laco_runtimes import graphs
from laco_runtimes.graphs import DecoderForm, GraphSpec
from laco_runtimes.manifest import LanguageFacts
from laco_runtimes.plan_builder import BuildSettings, BuiltPlan, Profile, build_plan, make_profile
from laco_runtimes.plan_products import PRODUCTS
from laco_runtimes.plan_profiles import make_profiles

pytestmark = pytest.mark.full
pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX, which builds without a GPU")

RTX = PRODUCTS["tensorrt-rtx"]
CAPACITY = 2048
HEADS, PATCHES = 16, 1024
Report = Callable[[str, object], None]
UNFUSED = HEADS * PATCHES * PATCHES * 2
"""Bytes of the scores of one attention over all patches in fp16: no fused kernel keeps them."""


@dataclass
class Full:
    folder: Path
    model: LacoForConditionalGeneration

    @property
    def language(self) -> LanguageFacts:
        text = self.model.config.text_config
        return LanguageFacts(
            model_type="qwen2",
            layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            vocab_size=text.vocab_size,
            max_positions=text.max_position_embeddings,
        )

    def build(
        self, path: Path, profiles: tuple[Profile, ...], gpu: str, report: Report
    ) -> BuiltPlan:
        """One GPU at a time: memory."""
        plan = build_plan(RTX, path, BuildSettings(profiles, compute_capabilities=(gpu,)))
        report(f"{path.stem} {gpu} MB", round(len(plan.data) / 1e6))
        report(f"{path.stem} {gpu} seconds", round(plan.seconds))
        return plan


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Full:
    torch.manual_seed(0)
    vision = find_preset("vision", "aimv2-large-448", VISION_PRESETS)
    text = find_preset("llm", "qwen2.5-0.5b", LANGUAGE_PRESETS)
    config = LacoConfig(
        vision_config=vision.config().to_dict(),
        text_config=text.config().to_dict(),
        mergers=[{"after_block": 6}],
    )
    model = LacoForConditionalGeneration(config).eval()
    return Full(tmp_path_factory.mktemp("full"), model)


@pytest.fixture(scope="module")
def encoder(full: Full) -> tuple[Path, GraphSpec]:
    spec = graphs.vision_encoder(448, PATCHES // 4, full.language.hidden_size)
    graph = VisionGraph(cast(nn.Module, full.model))
    return write_graph(graph, spec, full.folder, allowed_ops=ENCODER_OPS), spec


@pytest.mark.parametrize("gpu", ["SM80", "SM120"])
def test_check_3_and_4_the_encoder_builds_and_its_attention_is_fused(
    full: Full,
    encoder: tuple[Path, GraphSpec],
    gpu: str,
    record_property: Report,
) -> None:
    source, spec = encoder
    path = to_half(source, full.folder / "encoder16.onnx", "float16", spec)
    one_tile = (make_profile(spec, {"tiles": (1, 1, 1)}),)
    plan = full.build(path, one_tile, gpu, record_property)
    weights = sum(one.numel() for one in full.model.model.vision_encoder.parameters())
    assert plan.weight_bytes is not None
    assert plan.scratch_bytes is not None
    assert plan.weight_bytes > 1.8 * weights  # two bytes each
    assert plan.scratch_bytes < UNFUSED


def test_check_3_and_4_the_decoder_builds_in_int8_and_keeps_its_weights_once(
    full: Full, record_property: Report
) -> None:
    form = DecoderForm("static", "float16", CAPACITY)
    flavour, language = FLAVOURS["static"], full.language
    body = cast(LanguageBody, full.model.model.language_model)
    theta = full.model.config.text_config.rope_parameters["rope_theta"]
    graph = DecoderGraph(
        body,
        full.model.lm_head,
        head_dim=language.head_dim,
        rope_theta=theta,
        flavour="static",
        positions=CAPACITY,
    )
    plain = graphs.decoder(language, DecoderForm("static", capacity=CAPACITY))
    source = write_graph(graph, plain, full.folder, opset=flavour.opset, stem="decoder_static")
    codes = full.folder / "decoder_int8.onnx"
    quantize(source, codes, INT8, "float16")
    spec = graphs.decoder(language, form)
    path = to_half(codes, full.folder / "decoder16.onnx", "float16", spec)
    plan = full.build(path, make_profiles(spec, CAPACITY), "SM89", record_property)
    matrices = sum(one.numel() for one in full.model.lm_head.parameters()) + sum(
        one.numel()
        for name, one in full.model.model.language_model.named_parameters()
        if one.ndim == 2 and "embed_tokens" not in name
    )
    assert plan.weight_bytes is not None
    assert matrices < plan.weight_bytes < 1.1 * matrices
