"""The operators that the CPU plugin makes of the decoder, and what makes them fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from laco_export.precision import Precisions
from laco_runtimes.engines.openvino import openvino_core
from tests.export.openvino.work import Compile


def fused(path: Path) -> dict[str, int]:
    """Operators of a compiled decoder; attention over its own cache under a float mask apart."""
    runtime = openvino_core().compile_model(path, "CPU").get_runtime_model()

    def info(node: Any, key: str) -> str:
        return str(node.get_rt_info()[key].astype(str))

    found: dict[str, int] = {}
    for node in runtime.get_ops():
        kind = info(node, "layerType")
        found[kind] = found.get(kind, 0) + 1
        sources = [port.get_source_output().get_node() for port in node.inputs()]
        caches = [one for one in sources if info(one, "layerType") == "MemoryInput"]
        if kind == "ScaledDotProductAttention" and len(caches) == 2:
            mask = sources[3]
            name = f"attention with its cache, mask {info(mask, 'outputPrecisions')}"
            found[name] = found.get(name, 0) + 1
    return found


@pytest.mark.parametrize(
    "precisions", [Precisions("fp32", "fp32"), Precisions("int8w", "int8")], ids=str
)
def test_every_layer_has_attention_fused_with_its_cache_and_a_float_mask(
    compiled: Compile, precisions: Precisions
) -> None:
    bundle = compiled(precisions)
    layers = bundle.source.language.layers
    found = fused(bundle.file("decoder"))
    assert found["attention with its cache, mask f32"] == layers
    assert found["RoPE"] == 2 * layers
    assert found["RMS"] == 2 * layers + 1
    assert not {"Softmax", "Tile", "MatMul"} & found.keys()


@pytest.mark.parametrize(
    "precisions", [Precisions("fp32", "fp32"), Precisions("int8w", "int8")], ids=str
)
def test_every_layer_can_become_paged_attention(compiled: Compile, precisions: Precisions) -> None:
    from openvino._offline_transformations import paged_attention_transformation

    bundle = compiled(precisions)
    model = openvino_core().read_model(bundle.file("decoder"))
    paged_attention_transformation(model)
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert kinds.count("PagedAttentionExtension") == bundle.source.language.layers
    assert "ScaledDotProductAttention" not in kinds
    assert not {"beam_idx", "attention_mask"} & {port.any_name for port in model.inputs}


@pytest.mark.full
def test_24_layers_of_the_width_of_qwen2_5_0_5b_are_all_fused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.openvino.full_size", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["attention with its cache, mask f32"] == 24
    assert found["RoPE"] == 48
    assert found["RMS"] == 49
    assert not {"Softmax", "Tile", "MatMul"} & found.keys()
