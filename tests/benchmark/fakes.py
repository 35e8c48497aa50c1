"""Tiny real graphs, and engines whose calls take known times on a fake clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from laco_runtimes.engines.base import Floats, LoadedEngine, LoadRequest
from laco_runtimes.errors import EngineError
from laco_runtimes.graphs import GraphSpec, TensorSpec
from laco_runtimes.images import Preprocessing
from laco_runtimes.manifest import (
    FORMAT_VERSION,
    BundleFacts,
    LanguageFacts,
    MergerFacts,
    Parity,
    Variant,
    VisionFacts,
)
from laco_runtimes.prompt import chatml
from tests.runtime.fakes import IMAGE_TOKEN

WIDTH = 4
IMAGE_SIZE = 8
CONTEXT = 200
GRIDS = {"laco": (2, 2), "external": (2, 2), "uncompressed": (4, 4)}
MS = 1_000_000
"""Nanoseconds."""


def make_facts(tokenizer: Tokenizer, variants: Iterable[str]) -> BundleFacts:
    mergers = {
        "laco": (MergerFacts(kind="laco", after_block=1, ratio=2),),
        "external": (MergerFacts(kind="laco", after_block=2, ratio=2),),
        "uncompressed": (),
    }
    return BundleFacts(
        format_version=FORMAT_VERSION,
        created_by="laco-deploy (tests)",
        target="onnxruntime",
        precision={"vision_encoder": "fp32", "embed_tokens": "fp32", "decoder": "fp32"},
        language=LanguageFacts(
            model_type="qwen2",
            layers=1,
            hidden_size=WIDTH,
            heads=1,
            kv_heads=1,
            head_dim=WIDTH,
            vocab_size=tokenizer.get_vocab_size(),
            max_positions=CONTEXT,
        ),
        vision=VisionFacts(
            model_type="aimv2_vision_model", blocks=2, width=WIDTH, image_size=8, patch_size=2
        ),
        preprocessing=Preprocessing(image_size=IMAGE_SIZE, mean=(0.5,) * 3, std=(0.5,) * 3),
        prompt=chatml(tokenizer, image_token_id=tokenizer.token_to_id(IMAGE_TOKEN), system="S"),
        embed_tokens="onnx/embed_tokens.onnx",
        decoder="onnx/decoder.onnx",
        variants=tuple(
            Variant(
                name=name,
                mergers=mergers[name],
                merged_grid=GRIDS[name],
                vision_encoder=f"onnx/vision_{name}.onnx",
                latency_only=name != "laco",
            )
            for name in variants
        ),
        parity=Parity(
            images=1,
            adversarial_images=0,
            prompts=1,
            answered_images=1,
            greedy_tokens=1,
            greedy_identical=1,
            ties=0,
            checks=(),
        ),
        versions={"numpy": "2"},
    )


Graph = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def vision_nodes(side: int) -> Graph:
    """Average the pixels of each place of the grid; the channels become a width of 4."""
    window = [IMAGE_SIZE // side] * 2
    nodes = [
        helper.make_node(
            "AveragePool", ["pixel_values"], ["m"], kernel_shape=window, strides=window
        ),
        helper.make_node("Conv", ["m", "w"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["c", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["image_features"], perm=[0, 2, 1]),
    ]
    return nodes, [
        numpy_helper.from_array(np.ones((WIDTH, 3, 1, 1), np.float32), "w"),
        numpy_helper.from_array(np.array([0, WIDTH, side * side], np.int64), "shape"),
    ]


def embed_nodes(vocab_size: int) -> Graph:
    table = np.random.default_rng(0).normal(size=(vocab_size, WIDTH)).astype(np.float32)
    node = helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"])
    return [node], [numpy_helper.from_array(table, "table")]


def decoder_nodes(facts: LanguageFacts) -> Graph:
    """Logits from the last embedding alone; the cache grows by the embeddings. The likeliest token
    is always 3, whatever came before."""
    head = np.zeros((WIDTH, facts.vocab_size), np.float32)
    bias = np.eye(facts.vocab_size, dtype=np.float32)[3]
    nodes = [
        helper.make_node("Slice", ["inputs_embeds", "last", "end", "axis"], ["x"]),
        helper.make_node("MatMul", ["x", "head"], ["h"]),
        helper.make_node("Add", ["h", "bias"], ["logits"]),
        helper.make_node("Unsqueeze", ["inputs_embeds", "axis"], ["new"]),  # [1, heads, S, D]
        helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
        helper.make_node("Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2),
    ]
    constants = {"last": [-1], "end": [np.iinfo(np.int64).max], "axis": [1]}
    return nodes, [
        numpy_helper.from_array(head, "head"),
        numpy_helper.from_array(bias, "bias"),
        *(numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items()),
    ]


def save_graph(path: Path, spec: GraphSpec, graph: Graph) -> None:
    def info(tensor: TensorSpec) -> onnx.ValueInfoProto:
        kind = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}[tensor.dtype]
        return helper.make_tensor_value_info(tensor.name, kind, tensor.dims)

    nodes, constants = graph
    made = helper.make_graph(
        nodes, spec.name, [*map(info, spec.inputs)], [*map(info, spec.outputs)], constants
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@dataclass
class Bench:
    """Engines that cost a known time on `clock`, and what they were asked, in order."""

    now: int = 0
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(variant, call)."""
    encode_ms: dict[str, list[int]] = field(default_factory=dict)
    """Per variant, one cost for each encode in turn; the last one stays."""
    prefill_ms: dict[str, int] = field(default_factory=dict)
    decode_ms: int = 3
    """Of the image file."""
    load_ms: int = 0
    step_ms: int = 5
    embed_ms: int = 1
    devices: dict[str, str] = field(default_factory=dict)
    stop_token: int = 0
    """What the engines say all the time."""
    read_ns: int = 0
    """Cost of one reading of the clock."""
    broken: dict[str, int] = field(default_factory=dict)
    """Per variant, the encode from which on it fails, counted from 0; -1 fails to load."""

    def clock(self) -> int:
        self.now += self.read_ns
        return self.now

    def load(self, request: LoadRequest) -> LoadedEngine:
        name = request.variant.name
        self.now += self.load_ms * MS
        if self.broken.get(name) == -1:
            raise EngineError(f"{name} does not load. Export it again.")
        engine = TimedEngine(self, request)
        return LoadedEngine(engine, engine, self.devices.get(name, "toaster"), "nothing else here")

    def requests(self) -> list[str]:
        """Variants in the order of their requests."""
        return [name for name, call in self.calls if call == "encode"]


class TimedEngine:
    """Both Protocols. It wants to stop with every token."""

    def __init__(self, bench: Bench, request: LoadRequest) -> None:
        self.bench = bench
        self.name = request.variant.name
        self.tokens_per_tile = request.variant.tokens_per_tile
        self.vocab_size = request.manifest.language.vocab_size
        self.length = 0

    def _call(self, call: str, cost_ms: int) -> None:
        self.bench.calls.append((self.name, call))
        self.bench.now += cost_ms * MS

    def encode(self, pixel_values: Floats) -> Floats:
        assert pixel_values.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE)
        costs = self.bench.encode_ms.get(self.name, [10])
        done = self.bench.calls.count((self.name, "encode"))
        self._call("encode", costs.pop(0) if len(costs) > 1 else costs[0])
        if self.name in self.bench.broken and done >= self.bench.broken[self.name]:
            raise RuntimeError("the accelerator\nis gone")
        return np.zeros((len(pixel_values), self.tokens_per_tile, WIDTH), np.float32)

    def embed(self, ids: Sequence[int]) -> Floats:
        self._call("embed", self.bench.embed_ms)
        return np.ones((len(ids), WIDTH), np.float32)

    def prefill(self, embeds: Floats) -> Floats:
        assert self.length == 0, "the KV cache of the request before is still there"
        self.length = len(embeds)
        self._call("prefill", self.bench.prefill_ms.get(self.name, 20))
        return self._logits()

    def step(self, token: int) -> Floats:
        assert token == self.bench.stop_token
        self.length += 1
        self._call("step", self.bench.step_ms)
        return self._logits()

    def rewind(self, length: int) -> None:
        self.length = length

    def _logits(self) -> Floats:
        return np.eye(self.vocab_size, dtype=np.float32)[self.bench.stop_token]
