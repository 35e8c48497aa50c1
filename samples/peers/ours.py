"""The shared random weights, and our decoders of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from laco_runtimes.bundle import write_atomic
from laco_runtimes.engines.openvino import import_openvino
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import EngineFacts, FlavourName, LanguageFacts, VisionFacts

NO_VISION = VisionFacts(model_type="none", blocks=1, width=1, image_size=1, patch_size=1)
FLAVOURS: Mapping[str, FlavourName] = {"openvino": "stateful", "onnxruntime": "contrib"}
"""Of the decoder, by engine."""


def facts_of(settings: Mapping[str, Any]) -> LanguageFacts:
    """Shapes of a Qwen2 configuration."""
    return LanguageFacts(
        model_type="qwen2",
        layers=settings["num_hidden_layers"],
        hidden_size=settings["hidden_size"],
        heads=settings["num_attention_heads"],
        kv_heads=settings["num_key_value_heads"],
        head_dim=settings["hidden_size"] // settings["num_attention_heads"],
        vocab_size=settings["vocab_size"],
        max_positions=settings["max_position_embeddings"],
    )


def write_weights(settings: Mapping[str, Any], tokenizer: Path, work: Path) -> None:
    """Random weights as a Hugging Face folder, `work/weights`, and our graphs of them in fp32.

    Args:
        settings: of a `Qwen2Config`.
        tokenizer: folder whose tokenizer is put beside them: exporters want one, prompts are ids.
        work: folder for all that is made.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from laco_export.flavours import FLAVOURS as WRITERS
    from laco_export.graphs import DecoderGraph, EmbedGraph
    from laco_export.onnx_writer import write_graph
    from laco_runtimes import graphs

    config: Any = Qwen2Config(**{k: v for k, v in settings.items() if k != "model_type"})
    facts = facts_of(settings)
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(config)
    model.eval()
    for engine, wanted in FLAVOURS.items():
        flavour, form = WRITERS[wanted], DecoderForm(wanted)
        module = DecoderGraph(
            model.model,
            model.lm_head,
            head_dim=facts.head_dim,
            rope_theta=config.rope_parameters["rope_theta"],
            flavour=flavour.name,
            positions=flavour.positions(facts, form),
        )
        folder = work / "graphs" / engine / "onnx"
        write_graph(module, flavour.spec(facts, form), folder, opset=flavour.opset)
        write_graph(
            EmbedGraph(model.model.embed_tokens), graphs.embed_tokens(facts.hidden_size), folder
        )
    part = work / "weights.part"
    model.save_pretrained(part)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, part / name)
    part.rename(work / "weights")


def _write_openvino(root: Path, facts: LanguageFacts, precision: str) -> dict[str, str]:
    from laco_export.targets import CompileRequest
    from laco_export.targets.openvino import TARGET
    from laco_runtimes import graphs

    paths = {
        spec.name: TARGET.compile(
            CompileRequest(
                root=root,
                onnx=f"onnx/{spec.name}.onnx",
                spec=spec,
                language=facts,
                vision=NO_VISION,
                precision="int8" if spec.name == "embed_tokens" else precision,
            )
        )
        for spec in (graphs.embed_tokens(facts.hidden_size), graphs.decoder(facts))
    }
    openvino = import_openvino()
    from openvino import opset13 as ops

    # An encoder of one pixel: the engine wants one, and nobody asks it anything.
    pixels = ops.parameter([-1, 3, 1, 1], openvino.Type.f32, name="pixel_values")
    pixels.output(0).set_names({"pixel_values"})
    flat = ops.reshape(pixels, np.array([0, 1, 3]), special_zero=True)
    features = ops.matmul(flat, np.zeros((3, facts.hidden_size), np.float32), False, False)
    features.output(0).set_names({"image_features"})
    openvino.save_model(openvino.Model([features], [pixels]), root / "stand_in.xml")
    return paths


def _write_onnxruntime(root: Path, facts: LanguageFacts, precision: str) -> dict[str, str]:
    from laco_export.targets.onnxruntime_weights import (
        FASTEST_LEVEL,
        write_int8_table,
        write_nbits,
    )

    bits = {"int8": 8, "int4": 4}[precision]
    (root / "onnxruntime").mkdir()
    paths = {name: f"onnxruntime/{name}.onnx" for name in ("embed_tokens", "decoder")}
    # The level that the model builder of onnxruntime-genai takes as well.
    write_nbits(
        root / "onnx" / "decoder.onnx", root / paths["decoder"], bits=bits, level=FASTEST_LEVEL
    )
    write_int8_table(root / "onnx" / "embed_tokens.onnx", root / paths["embed_tokens"])
    return paths


_WRITERS = {"openvino": _write_openvino, "onnxruntime": _write_onnxruntime}


def write_engine(settings: Mapping[str, Any], work: Path, engine: str, precision: str) -> None:
    """What `engine` loads, in `work/laco-<engine>-<precision>`; `facts.json` last."""
    facts = facts_of(settings)
    root = work / f"laco-{engine}-{precision}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    (root / "onnx").symlink_to(Path("..") / "graphs" / engine / "onnx")
    paths = _WRITERS[engine](root, facts, precision)
    described = EngineFacts(
        target=engine,
        precision={"vision_encoder": "fp32", "embed_tokens": "int8", "decoder": precision},
        decoder_flavour=FLAVOURS[engine],
        language=facts,
        vision=NO_VISION,
        embed_tokens=paths["embed_tokens"],
        decoder=paths["decoder"],
    )
    write_atomic(root / "facts.json", described.model_dump_json(indent=2).encode())


__all__ = ["facts_of", "write_engine", "write_weights"]
