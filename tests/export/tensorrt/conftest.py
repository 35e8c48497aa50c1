"""Graphs of the shipped tiny model, each made when first asked for, and their plans."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from laco_deploy.exporting import BASELINES, build_job
from laco_deploy.model.checkpoint import load_checkpoint
from laco_export.flavours import FLAVOURS
from laco_export.graphs import DecoderGraph, EmbedGraph, VisionGraph
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_export.targets import tensorrt as target
from laco_export.targets.base import CompileRequest
from laco_runtimes import graphs
from laco_runtimes.graphs import DecoderForm, GraphSpec
from laco_runtimes.plan_builder import BuiltPlan

SHIPPED = Path(__file__).parents[3] / "samples" / "laco-tiny"
CAPACITY = 256

FORMS = {flavour: DecoderForm(flavour, capacity=CAPACITY) for flavour in ("static", "concat")}
"""In float32, as the graphs are written; `Tiny.form` has the cache in the type of a precision."""


@dataclass
class Tiny:
    """The shipped model as graphs below `root`: fp32 as written, the rest as compiled."""

    root: Path
    built: dict[str, BuiltPlan] = field(default_factory=dict)
    _compiled: dict[tuple[str, str], Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.job = build_job(
            load_checkpoint(SHIPPED),
            target="tensorrt-rtx",
            parity_samples=(),
            baselines=tuple(BASELINES),
        )
        self.modules = self.job.load()
        side = self.job.vision.image_size
        self.pixels = np.random.default_rng(0).standard_normal((4, 3, side, side), np.float32)
        self.calibration = self.root / "calibration.npy"
        np.save(self.calibration, self.pixels)

    def spec(self, module: str) -> GraphSpec:
        """`decoder_static` and `decoder_concat` are two modules here."""
        language = self.job.language
        if module == "embed_tokens":
            return graphs.embed_tokens(language.hidden_size)
        if module.startswith("decoder_"):
            return graphs.decoder(language, FORMS[module.removeprefix("decoder_")])
        [source] = [one for one in self.job.variants if one.name == self._variant(module)]
        return graphs.vision_encoder(
            self.job.vision.image_size, source.tokens_per_tile, language.hidden_size
        )

    def fp32(self, module: str) -> Path:
        """The graph as it was traced; encoders are `vision_encoder` and `vision_encoder.<name>`."""
        spec = self.spec(module)
        folder = self.root / "onnx"
        if module.startswith("vision_encoder."):
            folder = self.root / "baseline" / self._variant(module)
        path = folder / f"{module.partition('.')[0]}.onnx"
        if path.exists():
            return path
        if module == "embed_tokens":
            return write_graph(EmbedGraph(self.modules.body.embed_tokens), spec, folder)
        if not module.startswith("decoder_"):
            encoder = self.modules.encoders[self._variant(module)]
            return write_graph(
                VisionGraph(encoder),
                spec,
                folder,
                allowed_ops=ENCODER_OPS,  # type: ignore[arg-type]
            )
        flavour = FLAVOURS[module.removeprefix("decoder_")]
        graph = DecoderGraph(
            self.modules.body,
            self.modules.head,
            head_dim=self.job.language.head_dim,
            rope_theta=self.job.rope_theta,
            flavour=flavour.name,
            positions=CAPACITY,
        )
        return write_graph(graph, spec, folder, opset=flavour.opset, stem=module)

    def compiled(self, module: str, precision: str) -> Path:
        """What the target made of it; it was built for the four GPUs then."""
        key = module, precision
        if key not in self._compiled:
            self._compiled[key] = self._compile(module, precision)
        return self._compiled[key]

    def plan(self, module: str, precision: str) -> BuiltPlan:
        """What building it as proof gave."""
        self.compiled(module, precision)
        return self.built[f"{module} {precision}"]

    def form(self, module: str, precision: str) -> DecoderForm | None:
        if not module.startswith("decoder_"):
            return None
        dtype = target.CACHE_DTYPES[precision]
        return DecoderForm(FORMS[module.removeprefix("decoder_")].flavour, dtype, CAPACITY)

    def request(self, module: str, precision: str) -> CompileRequest:
        return CompileRequest(
            root=self.root,
            onnx=self.fp32(module).relative_to(self.root).as_posix(),
            spec=self.spec(module),
            language=self.job.language,
            vision=self.job.vision,
            precision=precision,
            calibration=self.calibration if module.startswith("vision") else None,
            form=self.form(module, precision),
        )

    def _compile(self, module: str, precision: str) -> Path:
        prove = target.prove

        def noted(*args: object) -> BuiltPlan:
            self.built[f"{module} {precision}"] = prove(*args)  # type: ignore[arg-type]
            return self.built[f"{module} {precision}"]

        request = self.request(module, precision)
        with mock.patch.object(target, "prove", noted):
            made = self.root / target.compile_graph(request, "tensorrt-rtx")
        # A folder for each precision: the next one has the same name.
        kept = self.root / precision / module
        kept.mkdir(parents=True)
        for name in (made.name, f"{made.name}.data"):
            if made.with_name(name).exists():
                made.with_name(name).rename(kept / name)
        return kept / made.name

    @staticmethod
    def _variant(module: str) -> str:
        return module.partition(".")[2] or "laco"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))
