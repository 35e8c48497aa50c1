"""Decodes with the graphs of any flavour on ONNX Runtime, as an engine would."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import Qwen2Config, Qwen2ForCausalLM

from laco_export.flavours import FLAVOURS
from laco_export.graphs import DecoderGraph
from laco_export.onnx_writer import write_graph
from laco_runtimes.graphs import DecoderForm, GraphSpec
from laco_runtimes.manifest import LanguageFacts

Floats = NDArray[np.float32]

CAPACITY = 32
PASSES = (9, 1, 1, 1, 1, 6, 1)
"""A prompt, four steps, a second turn and its first step."""

FACTS = LanguageFacts(
    model_type="qwen2",
    layers=2,
    hidden_size=224,
    heads=14,
    kv_heads=2,
    head_dim=16,
    vocab_size=96,
    max_positions=64,
)
"""As many heads as Qwen2.5-0.5B has, each a quarter as wide."""


def small_model(facts: LanguageFacts = FACTS) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights, none of them 0 or 1."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=facts.hidden_size,
            num_hidden_layers=facts.layers,
            num_attention_heads=facts.heads,
            num_key_value_heads=facts.kv_heads,
            intermediate_size=160,
            vocab_size=facts.vocab_size,
            max_position_embeddings=facts.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            middle = 1.0 if "norm" in name else 0.0
            torch.nn.init.normal_(weight, mean=middle, std=0.1)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def form_of(name: str) -> DecoderForm:
    """Of the graphs in these tests."""
    return DecoderForm(FLAVOURS[name].name, capacity=CAPACITY if name == "static" else None)


def write_flavours(folder: Path) -> None:
    """The graph of every flavour, with one file of weights."""
    model = small_model()
    source, _ = write_flavour(model, "stateful", folder)
    for name in FLAVOURS:
        if name != "stateful":
            write_flavour(model, name, folder, share=source)


def write_flavour(
    model: Qwen2ForCausalLM,
    name: str,
    folder: Path,
    share: Path | None = None,
    facts: LanguageFacts = FACTS,
) -> tuple[Path, GraphSpec]:
    """The graph of one flavour and its declaration."""
    flavour, form = FLAVOURS[name], form_of(name)
    spec = flavour.spec(facts, form)
    graph = DecoderGraph(
        model.model,
        model.lm_head,
        head_dim=facts.head_dim,
        rope_theta=1e6,
        flavour=name,
        positions=flavour.positions(facts, form),
    )
    path = write_graph(graph, spec, folder, opset=flavour.opset, stem=flavour.stem, share=share)
    return path, spec


@dataclass
class Talk:
    """One row of embeddings and the logits that transformers gives at every position."""

    embeds: Floats  # [1, tokens, D]
    expected: Floats  # [tokens, V]


def talk(model: Qwen2ForCausalLM) -> Talk:
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(1, sum(PASSES), FACTS.hidden_size, generator=generator)
    with torch.no_grad():
        logits = model(inputs_embeds=embeds).logits
    return Talk(embeds.numpy(), logits[0].numpy())


@dataclass
class Decoder:
    """A graph with its cache. `shared`: the cache is one buffer, bound as input and output."""

    path: Path
    spec: GraphSpec
    shared: bool
    session: Any = field(init=False)
    cache: dict[str, Any] = field(init=False)
    length: int = 0

    def __post_init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )
        names = [one.name for one in self.spec.inputs]
        self.past = [name for name in names if name.startswith("past_key_values")]
        shape = (1, FACTS.kv_heads, CAPACITY if self.shared else 0, FACTS.head_dim)
        kinds = {one.name: np.dtype(one.dtype) for one in self.spec.inputs}
        self.cache = {
            # Rubbish where nothing was written yet, as in a buffer that is used again.
            name: onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, 3, kinds[name]))
            for name in self.past
        }

    def __call__(self, embeds: Floats) -> Floats:
        """[1, S, D] -> [V]."""
        new = embeds.shape[1]
        total = self.length + new
        places = np.arange(self.length, total)
        slots = np.arange(CAPACITY)
        mask = np.ones((1, total), np.int64)
        static = any(one.name == "write_indices" for one in self.spec.inputs)
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": (slots <= places[:, None])[None, None] if static else mask,
            "position_ids": places[None],
            "write_indices": np.array([self.length]),
        }
        binding = self.session.io_binding()
        for one in self.session.get_inputs():
            if one.name in self.cache:
                binding.bind_ortvalue_input(one.name, self.cache[one.name])
            else:
                binding.bind_cpu_input(one.name, np.ascontiguousarray(inputs[one.name]))
        binding.bind_output("logits")
        for name in self.past:
            present = name.replace("past_key_values", "present")
            if self.shared:
                binding.bind_ortvalue_output(present, self.cache[name])
            else:
                binding.bind_output(present)
        self.session.run_with_iobinding(binding)
        found = binding.get_outputs()
        if not self.shared:
            self.cache = dict(zip(self.past, found[1:], strict=True))
        self.length = total
        logits = np.asarray(found[0].numpy())
        assert logits.shape == (1, 1, FACTS.vocab_size)
        last: Floats = logits[0, 0]
        return last


def largest_difference(decoder: Decoder, talk: Talk) -> float:
    """Over all passes, the largest absolute difference of any logit."""
    differences, start = [], 0
    for new in PASSES:
        logits = decoder(talk.embeds[:, start : start + new])
        start += new
        differences.append(np.abs(logits - talk.expected[start - 1]).max())
    return float(max(differences))
