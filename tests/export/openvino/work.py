"""What the target openvino makes of the shipped tiny model, in any choice of precisions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from laco_deploy.model.checkpoint import Checkpoint, load_checkpoint
from laco_export.graphs import DecoderGraph, EmbedGraph, VisionGraph
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_export.precision import Module, Precisions
from laco_export.ranges import measure_ranges
from laco_export.targets import CompileRequest, FinishRequest
from laco_export.targets.openvino import TARGET
from laco_export.targets.openvino_weights import dense_layers
from laco_runtimes import graphs
from laco_runtimes.engines.base import Floats, LoadedEngine, LoadRequest
from laco_runtimes.engines.openvino import import_openvino, load, openvino_core
from laco_runtimes.generation import splice
from laco_runtimes.graphs import GraphSpec
from laco_runtimes.images import load_image, normalise, resize_square
from laco_runtimes.manifest import EngineFacts, LanguageFacts, MergerFacts, Variant, VisionFacts
from laco_runtimes.prompt import encode_text, load_tokenizer

if TYPE_CHECKING:
    from openvino import Model

TINY = Path(__file__).parents[3] / "samples" / "laco-tiny"
ANSWER = 4
"""Tokens behind which logits are compared."""

Compile = Callable[[Precisions], "Compiled"]


@dataclass(frozen=True)
class Question:
    """One of the shipped model's own test questions."""

    image: Path
    prompt: str


QUESTIONS = tuple(
    Question(
        TINY / "parity" / one["image"],
        one["conversations"][0]["value"].removeprefix("<image>\n"),
    )
    for one in json.loads((TINY / "parity" / "samples.json").read_text())
)


@dataclass(frozen=True)
class Source:
    """A checkpoint and its graphs in fp32, as the exporter leaves them for a target."""

    root: Path
    checkpoint: Checkpoint
    language: LanguageFacts
    vision: VisionFacts
    variant: Variant

    def tile(self, question: Question) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The image squashed to a square, [S, S, 3]."""
        return resize_square(load_image(question.image), self.vision.image_size)

    def pixels(self, question: Question) -> Floats:
        """[1, 3, S, S]."""
        return normalise(self.tile(question), self.checkpoint.preprocessing)[None]

    def ids(self, prompt: str) -> list[int]:
        """A first turn with one image, as the pipeline has it."""
        template = self.checkpoint.template
        text = encode_text(load_tokenizer(TINY / "tokenizer.json"), prompt)
        return [*template.system, *template.turn(text, [self.variant.tokens_per_tile])]


def open_source(root: Path) -> Source:
    """The shipped model, its graphs in `root` or to be written there."""
    checkpoint = load_checkpoint(TINY)
    config, model = checkpoint.config, checkpoint.model
    model.eval()  # type: ignore[no-untyped-call]
    text: Any = config.text
    vision: Any = config.vision
    return Source(
        root,
        checkpoint,
        LanguageFacts(
            model_type=text.model_type,
            layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            vocab_size=text.vocab_size,
            max_positions=text.max_position_embeddings,
        ),
        VisionFacts(
            model_type=vision.model_type,
            blocks=vision.num_hidden_layers,
            width=vision.hidden_size,
            image_size=config.image_size,
            patch_size=vision.patch_size,
        ),
        Variant(
            name="laco",
            mergers=(MergerFacts(kind="laco", after_block=1, ratio=2),),
            merged_grid=config.merged_grid,
            vision_encoder="onnx/vision_encoder.onnx",
            latency_only=False,
        ),
    )


def write_source(root: Path) -> None:
    """Trace the three graphs."""
    source = open_source(root)
    model, text = source.checkpoint.model, cast(Any, source.checkpoint.config.text)
    body, declared = model.model.language_model, specs(source)
    theta = text.rope_parameters["rope_theta"]
    head_dim = source.language.head_dim
    decoder = DecoderGraph(body, model.lm_head, head_dim=head_dim, rope_theta=theta)
    onnx = root / "onnx"
    write_graph(VisionGraph(model), declared["vision_encoder"], onnx, allowed_ops=ENCODER_OPS)
    write_graph(EmbedGraph(body.embed_tokens), declared["embed_tokens"], onnx)
    write_graph(decoder, declared["decoder"], onnx)


@dataclass(frozen=True)
class Compiled:
    """A bundle that is not sealed."""

    root: Path
    source: Source
    facts: EngineFacts
    variant: Variant

    @property
    def folder(self) -> Path:
        return self.root / "openvino"

    def engine(self) -> LoadedEngine:
        return load(LoadRequest(self.root, self.facts, self.variant, "cpu"))

    def file(self, module: Module) -> Path:
        """The `.xml` of a graph."""
        if module == "vision_encoder":
            return self.root / self.variant.vision_encoder
        return self.root / (self.facts.decoder if module == "decoder" else self.facts.embed_tokens)


def specs(source: Source) -> dict[Module, GraphSpec]:
    width = source.language.hidden_size
    return {
        "vision_encoder": graphs.vision_encoder(
            source.vision.image_size, source.variant.tokens_per_tile, width
        ),
        "embed_tokens": graphs.embed_tokens(width),
        "decoder": graphs.decoder(source.language),
    }


def request_for(
    source: Source, root: Path, module: Module, precision: str, calibration: Path | None = None
) -> CompileRequest:
    return CompileRequest(
        root=root,
        onnx=f"onnx/{module}.onnx",
        spec=specs(source)[module],
        language=source.language,
        vision=source.vision,
        precision=precision,
        calibration=calibration,
    )


def write_ranges(model: Model, images: Floats, path: Path) -> Path:
    """What `measure_ranges` writes, of a model that was never ONNX. Names what enters its layers.

    Args:
        model: an encoder.
        images: its input, [images, ...].
        path: where to write.
    """
    openvino = import_openvino()
    sources = {
        layer.input_value(0).get_node().get_friendly_name(): layer.input_value(0)
        for layer, _ in dense_layers(model)
    }
    for name, source in sources.items():
        source.get_tensor().set_names({*source.get_names(), name})
    probe = openvino.Model(list(sources.values()), model.get_parameters())
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino_core().compile_model(probe, "CPU", hints)(images)
    ends: dict[str, Any] = {}
    for place, name in enumerate(sources):
        rows = found[place].reshape(-1, found[place].shape[-1])
        ends[name] = np.stack([rows.min(0), rows.max(0)])
    np.savez(path, **ends)
    return path


def compile_bundle(source: Source, root: Path, precisions: Precisions) -> Compiled:
    """All three graphs."""
    root.mkdir()
    (root / "onnx").symlink_to(source.root / "onnx")
    shutil.copyfile(TINY / "tokenizer.json", root / "tokenizer.json")
    calibration = root / "ranges.npz"
    pixels = np.concatenate([source.pixels(one) for one in QUESTIONS[:8]])
    measure_ranges(root / "onnx" / "vision_encoder.onnx", pixels, calibration, lambda: None)
    paths = {
        module: TARGET.compile(
            request_for(
                source,
                root,
                module,
                precisions.of(module),
                calibration if module == "vision_encoder" else None,
            )
        )
        for module in specs(source)
    }
    facts = EngineFacts(
        target="openvino",
        precision={str(module): precisions.of(module) for module in paths},
        language=source.language,
        vision=source.vision,
        embed_tokens=paths["embed_tokens"],
        decoder=paths["decoder"],
    )
    variant = source.variant.model_copy(update={"vision_encoder": paths["vision_encoder"]})
    return Compiled(root, source, facts, variant)


def finish(bundle: Compiled) -> Compiled:
    """Write what belongs to the folder as a whole."""
    checkpoint = bundle.source.checkpoint
    TARGET.finish(
        FinishRequest(
            root=bundle.root,
            facts=bundle.facts,
            variants=(bundle.variant,),
            preprocessing=checkpoint.preprocessing,
            prompt=checkpoint.template,
        )
    )
    return bundle


def logits_along(
    engine: LoadedEngine, source: Source, question: Question, tokens: Sequence[int] = ()
) -> Floats:
    """After the prompt and after each token of an answer, [passes, V]; greedy without `tokens`."""
    ids = source.ids(question.prompt)
    features = engine.vision.encode(source.pixels(question))
    embeds = splice(
        engine.language.embed(ids), ids, features, source.checkpoint.template.image_token_id
    )
    engine.language.rewind(0)
    passes = [engine.language.prefill(embeds)]
    for index in range(ANSWER):
        token = tokens[index] if tokens else int(passes[-1].argmax())
        passes.append(engine.language.step(token))
    return np.stack(passes)


def divergence(reference: Floats, other: Floats) -> float:
    """Mean KL of the next token's distribution."""

    def log_softmax(logits: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return cast(
            "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
            shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)),
        )

    ours, theirs = log_softmax(reference), log_softmax(other)
    return float((np.exp(ours) * (ours - theirs)).sum(-1).mean())
