"""What the target onnxruntime makes of the fp32 graphs of a bundle, in any precision and layout."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from laco_deploy.model.checkpoint import Checkpoint, load_checkpoint
from laco_export.precision import Module, Precisions
from laco_export.targets import CompileRequest, FinishRequest, TargetOptions
from laco_export.targets.onnxruntime import TARGET
from laco_runtimes import graphs
from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines.base import Floats, LoadedEngine, LoadRequest
from laco_runtimes.engines.onnxruntime import load
from laco_runtimes.generation import generate, splice
from laco_runtimes.images import ImageSource, load_image, preprocess
from laco_runtimes.manifest import EngineFacts, Manifest, Variant
from laco_runtimes.prompt import encode_text, load_tokenizer
from laco_runtimes.settings import Settings

MODULES: tuple[Module, ...] = ("vision_encoder", "embed_tokens", "decoder")


@dataclass(frozen=True)
class Source:
    """A bundle in fp32, which holds the exporter's own graphs, and its checkpoint."""

    root: Path
    manifest: Manifest
    checkpoint: Checkpoint

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        return self.manifest.variants[0].tokens_per_tile

    def pixels(self, image: ImageSource) -> Floats:
        return preprocess(load_image(image), self.manifest.preprocessing)

    def ids(self, prompt: str) -> list[int]:
        """A first turn with one image, as the pipeline has it."""
        template = self.manifest.prompt
        text = encode_text(load_tokenizer(self.root / "tokenizer.json"), prompt)
        return [*template.system, *template.turn(text, [self.tokens])]

    def expected(self, image: ImageSource, prompt: str, tokens: int) -> list[int]:
        """PyTorch's greedy answer, up to and with the stop token."""
        ids = torch.tensor([self.ids(prompt)])
        output = self.checkpoint.model.generate(  # type: ignore[attr-defined]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(self.pixels(image)),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=list(self.manifest.prompt.stop),
            pad_token_id=0,
        )
        return [int(one) for one in output[0, ids.shape[1] :]]


@dataclass(frozen=True)
class Compiled:
    """What the target made, not sealed."""

    root: Path
    source: Source
    facts: EngineFacts
    variant: Variant

    def engine(self, device: str = "auto") -> LoadedEngine:
        return load(LoadRequest(self.root, self.facts, self.variant, device))

    def embeds(self, engine: LoadedEngine, image: ImageSource, prompt: str) -> Floats:
        """Of the whole prompt, [sequence, D]."""
        ids = self.source.ids(prompt)
        features = engine.vision.encode(self.source.pixels(image))
        template = self.source.manifest.prompt
        return splice(engine.language.embed(ids), ids, features, template.image_token_id)

    def answer(
        self, engine: LoadedEngine, image: ImageSource, prompt: str, tokens: int
    ) -> list[int]:
        """Greedy, up to and with the stop token."""
        engine.language.rewind(0)
        embeds = self.embeds(engine, image, prompt)
        stop, ids = self.source.manifest.prompt.stop, self.source.ids(prompt)
        answer = generate(engine.language, embeds, ids, stop, Settings(), tokens)
        return [token.id for token in answer]


def open_source(bundle: Path, checkpoint: Path) -> Source:
    return Source(bundle, open_bundle(bundle).manifest, load_checkpoint(checkpoint))


def compile_bundle(
    source: Source, root: Path, precisions: Precisions, layouts: Sequence[str] = ()
) -> Compiled:
    """All graphs in one choice of precisions, and the layouts."""
    shutil.copytree(source.root, root)
    options = TargetOptions(layouts=tuple(layouts))
    TARGET.check_options(options)
    manifest = source.manifest
    language = manifest.language
    form = TARGET.form(precisions, language, options)
    main = manifest.variants[0]
    specs = {
        "vision_encoder": graphs.vision_encoder(
            manifest.vision.image_size, main.tokens_per_tile, language.hidden_size
        ),
        "embed_tokens": graphs.embed_tokens(language.hidden_size),
        "decoder": graphs.decoder(language, form),
    }
    sources = {
        "vision_encoder": main.vision_encoder,
        "embed_tokens": manifest.embed_tokens,
        "decoder": manifest.decoder,
    }
    made = {
        name: TARGET.compile(
            CompileRequest(
                root=root,
                onnx=sources[name],
                spec=specs[name],
                language=language,
                vision=manifest.vision,
                precision=precisions.of(name),
                form=form if name == "decoder" else None,
                options=options,
            )
        )
        for name in MODULES
    }
    variant = main.model_copy(update={"vision_encoder": made["vision_encoder"]})
    facts = EngineFacts(
        target="onnxruntime",
        precision={name: precisions.of(name) for name in MODULES},
        decoder_flavour=form.flavour,
        cache_dtype=form.cache_dtype,
        language=language,
        vision=manifest.vision,
        embed_tokens=made["embed_tokens"],
        decoder=made["decoder"],
    )
    TARGET.finish(
        FinishRequest(
            root=root,
            facts=facts,
            variants=(variant,),
            preprocessing=manifest.preprocessing,
            prompt=manifest.prompt,
            options=options,
        )
    )
    return Compiled(root, source, facts, variant)


def cosine(one: Floats, other: Floats) -> float:
    """Of two tensors as vectors."""
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
