"""What a target makes of the graphs, and how its engine runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from laco_deploy.model.checkpoint import Checkpoint
from laco_export.job import ExportJob
from laco_export.targets import TARGETS
from laco_runtimes import graphs
from laco_runtimes.engines import ENGINES
from laco_runtimes.engines.openvino import openvino_core
from tests.bundles import RandomBundles
from tests.export.passes import PROMPT, Floats, conversation, largest_difference

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


@pytest.fixture(scope="module")
def folder(bundle_for: RandomBundles) -> Path:
    return bundle_for("openvino") / "openvino"


@pytest.fixture(scope="module")
def decoder(folder: Path) -> openvino.CompiledModel:
    return openvino_core().compile_model(folder / "openvino_language_model.xml", "CPU", EXACT)


def test_every_target_has_an_engine_of_its_name() -> None:
    for name, target in TARGETS.items():
        assert target.name == name
        assert (ENGINES[name].package, ENGINES[name].extra) == (target.package, target.extra)


def test_onnx_runtime_loads_the_onnx_files_themselves(bundle_for: RandomBundles) -> None:
    manifest = bundle_for.manifest("onnxruntime")
    assert manifest.decoder == "onnx/decoder_contrib.onnx"
    assert manifest.variants[1].vision_encoder == "baseline/uncompressed/vision_encoder.onnx"


def test_the_decoder_is_stateful(folder: Path, job: ExportJob) -> None:
    model = openvino_core().read_model(folder / "openvino_language_model.xml")
    spec = graphs.stateful_decoder(job.language)
    assert [port.any_name for port in model.inputs] == [one.name for one in spec.inputs]
    assert [port.any_name for port in model.outputs] == ["logits"]
    assert len(model.get_sinks()) == 2 * job.language.layers


def test_openvino_fuses_attention_with_its_kv_cache_in_every_layer(
    decoder: openvino.CompiledModel, job: ExportJob
) -> None:
    def kind(node: openvino.Node) -> str:
        return str(node.get_rt_info()["layerType"].astype(str))

    nodes = decoder.get_runtime_model().get_ops()
    fused = [
        node
        for node in nodes
        if kind(node) == "ScaledDotProductAttention"
        and [kind(port.get_source_output().get_node()) for port in node.inputs()].count(
            "MemoryInput"
        )
        == 2
    ]
    assert len(fused) == job.language.layers
    kinds = [kind(node) for node in nodes]
    assert kinds.count("RoPE") == 2 * job.language.layers
    assert kinds.count("RMS") == 2 * job.language.layers + 1
    assert "Softmax" not in kinds
    assert "Tile" not in kinds


def test_openvino_decodes_as_transformers_does(
    decoder: openvino.CompiledModel, checkpoint: Checkpoint
) -> None:
    request = decoder.create_infer_request()

    def decode(embeds: Floats, mask: NDArray[np.int64], positions: NDArray[np.int64]) -> Floats:
        outputs = request.infer(
            {
                "inputs_embeds": embeds,
                "attention_mask": mask,
                "position_ids": positions,
                "beam_idx": np.arange(2, dtype=np.int32),
            }
        )
        return np.array(outputs["logits"][:, 0])

    talk = conversation(checkpoint.model)
    assert largest_difference(talk, decode) < 1e-4
    request.reset_state()
    assert largest_difference(talk, decode) < 1e-4


def test_beam_idx_names_the_row_whose_cache_goes_on(
    decoder: openvino.CompiledModel, checkpoint: Checkpoint
) -> None:
    talk = conversation(checkpoint.model)
    request = decoder.create_infer_request()

    def logits(start: int, end: int, rows: list[int], beams: list[int]) -> Floats:
        outputs = request.infer(
            {
                "inputs_embeds": talk.embeds[rows, start:end].numpy(),
                "attention_mask": talk.mask[rows, :end].numpy(),
                "position_ids": talk.positions[rows, start:end].numpy(),
                "beam_idx": np.array(beams, np.int32),
            }
        )
        return np.array(outputs["logits"][:, 0])

    logits(0, PROMPT, [0, 1], [0, 1])
    swapped = logits(PROMPT, PROMPT + 1, [1, 0], [1, 0])
    np.testing.assert_allclose(swapped, talk.expected[[1, 0], PROMPT].numpy(), atol=1e-4)


@pytest.mark.parametrize("graph", ["openvino_vision_embeddings_model", "openvino_language_model"])
def test_no_guard_against_nan_is_left_behind_attention(folder: Path, graph: str) -> None:
    kinds = {
        node.get_type_name()
        for node in openvino_core().read_model(folder / f"{graph}.xml").get_ops()
    }
    assert "ScaledDotProductAttention" in kinds
    assert "IsNaN" not in kinds
