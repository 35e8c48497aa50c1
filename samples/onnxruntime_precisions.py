"""What fewer bits bring on ONNX Runtime's CPU provider, interleaved, as ratios to fp32.

python samples/onnxruntime_precisions.py [--layers 4] [--prompt 288] [--rounds 4]

A decoder of the shape of Qwen2.5-0.5B with random weights: prefill, and time per token behind it.
Then the largest product of an AIMv2-L encoder behind a 2 x 2 merger. With 24 layers and the whole
vocabulary (--layers 24 --vocabulary 151936) it takes 3 GB of memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from laco_export.flavours import FLAVOURS
from laco_export.graphs import DecoderGraph, EmbedGraph
from laco_export.half import to_half
from laco_export.onnx_writer import write_graph
from laco_export.targets.onnxruntime_weights import (
    copy_graph,
    set_level,
    write_channels,
    write_nbits,
)
from laco_runtimes import graphs
from laco_runtimes.engines.onnxruntime import open_language
from laco_runtimes.graphs import DecoderForm
from laco_runtimes.manifest import LanguageFacts

STEPS = 8
HALF = DecoderForm("contrib", "float16")


def write_decoders(folder: Path, layers: int, vocabulary: int) -> tuple[dict[str, Path], Path]:
    """One decoder in every precision, and its embeddings."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    facts = language_facts(layers, vocabulary)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=facts.hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=facts.heads,
            num_key_value_heads=facts.kv_heads,
            intermediate_size=4864,
            vocab_size=vocabulary,
            max_position_embeddings=facts.max_positions,
            tie_word_embeddings=True,
        )
    ).eval()
    flavour, form = FLAVOURS["contrib"], DecoderForm("contrib")
    module = DecoderGraph(
        model.model,
        model.lm_head,
        head_dim=facts.head_dim,
        rope_theta=1e6,
        flavour=flavour.name,
        positions=flavour.positions(facts, form),
    )
    spec = flavour.spec(facts, form)
    source = write_graph(module, spec, folder, opset=flavour.opset, stem="fp32")
    embed = write_graph(
        EmbedGraph(model.model.embed_tokens), graphs.embed_tokens(facts.hidden_size), folder
    )
    paths = {"fp32": source, "fp16": folder / "fp16.onnx", "int8": folder / "int8.onnx"}
    to_half(source, paths["fp16"], "float16", flavour.spec(facts, HALF))
    write_nbits(source, paths["int8"], bits=8, level=4)
    for name, level in (("int4", 4), ("int4, level 1", 1)):
        paths[name] = folder / f"int4_{level}.onnx"
        write_nbits(source, paths[name], bits=4, level=4)
        set_level(paths[name], level)
    return paths, embed


def language_facts(layers: int, vocabulary: int) -> LanguageFacts:
    """Those of Qwen2.5-0.5B, but for depth and vocabulary."""
    return LanguageFacts(
        model_type="qwen2",
        layers=layers,
        hidden_size=896,
        heads=14,
        kv_heads=2,
        head_dim=64,
        vocab_size=vocabulary,
        max_positions=2048,
    )


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least time of each in seconds, one after the other in every round."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def show(title: str, best: dict[str, float]) -> None:
    """One line per precision."""
    print(title)
    first = next(iter(best.values()))
    for name, seconds in best.items():
        print(f"  {name:15} {seconds * 1000:9.2f} ms   {seconds / first:5.2f} of fp32")


def measure_products(folder: Path, rounds: int) -> dict[str, float]:
    """[256, 1024] times [1024, 4096], as after a merger."""
    import onnxruntime
    from onnx import helper, numpy_helper, save

    random = np.random.default_rng(0)
    weight = random.normal(0, 0.02, (1024, 4096)).astype(np.float32)
    tokens = random.normal(0, 1, (256, 1024)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", 1, ["tokens", 1024])],
        [helper.make_tensor_value_info("y", 1, ["tokens", 4096])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 23)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "raw.onnx")
    copy_graph(folder / "raw.onnx", folder / "product.onnx")
    write_channels(folder / "raw.onnx", folder / "product_int8w.onnx")
    write_nbits(folder / "raw.onnx", folder / "product_int8.onnx", bits=8, level=4)
    sessions = {
        name: onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        for name, file in (
            ("fp32", "product.onnx"),
            ("int8w", "product_int8w.onnx"),
            ("int8", "product_int8.onnx"),
        )
    }
    return measure(
        {name: lambda one=one: one.run(None, {"x": tokens}) for name, one in sessions.items()},
        3 * rounds,
    )


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--prompt", type=int, default=288)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    facts = language_facts(options.layers, options.vocabulary)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths, embed = write_decoders(folder, options.layers, options.vocabulary)
        models = {
            name: open_language(
                path, embed, facts, HALF if name == "fp16" else DecoderForm("contrib")
            )
            for name, path in paths.items()
        }
        prompt = np.random.default_rng(0).normal(0, 0.02, (options.prompt, 896)).astype(np.float32)
        prefill = dict.fromkeys(models, float("inf"))
        steps = dict.fromkeys(models, float("inf"))
        for _ in range(options.rounds):
            for name, model in models.items():
                model.rewind(0)
                prefill[name] = min(
                    prefill[name],
                    measure({name: lambda model=model: model.prefill(prompt)}, 1)[name],
                )
                steps[name] = min(
                    steps[name], measure({name: lambda model=model: model.step(7)}, STEPS)[name]
                )
        show(f"Prefill of {options.prompt} tokens, {options.layers} layers", prefill)
        show("Time per token behind it", steps)
        show("Product [256, 1024] x [1024, 4096]", measure_products(folder, options.rounds))


if __name__ == "__main__":
    main()
