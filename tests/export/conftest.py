"""One random checkpoint and its bundles, exported once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from laco_deploy.exporting import build_job
from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.model.checkpoint import Checkpoint, load_checkpoint
from laco_export.flavours import FLAVOURS
from laco_export.graphs import VisionGraph
from laco_export.job import ExportJob
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_runtimes import graphs
from laco_runtimes.graphs import GraphSpec
from tests.bundles import PLAN, RandomBundles, random_samples
from tests.export.flavour_engines import FACTS, form_of, write_flavours
from tests.model.tower_samples import laco_config, randomize
from tests.shared import made_once, run_folder


@pytest.fixture(scope="session")
def checkpoint(bundle_for: RandomBundles) -> Checkpoint:
    return load_checkpoint(bundle_for.checkpoint)


@pytest.fixture(scope="session")
def job(checkpoint: Checkpoint) -> ExportJob:
    return build_job(checkpoint, target="onnxruntime", parity_samples=random_samples(), plan=PLAN)


@pytest.fixture(scope="session")
def flavours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, GraphSpec]]:
    """A small decoder in every flavour, all in one folder: its file and its declaration."""
    folder = made_once(run_folder(tmp_path_factory) / "flavours", write_flavours)
    return {
        name: (folder / f"{flavour.stem}.onnx", flavour.spec(FACTS, form_of(name)))
        for name, flavour in FLAVOURS.items()
    }


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a small AIMv2 with one LaCo merger after the second of its blocks."""
    mergers = [{"after_block": 2, "kind": "laco"}]
    model = randomize(LacoForConditionalGeneration(laco_config("aimv2_vision_model", mergers)))
    spec = graphs.vision_encoder(model.config.image_size, 16, model.config.text.hidden_size)
    folder = tmp_path_factory.mktemp("encoder")
    return write_graph(VisionGraph(model), spec, folder, allowed_ops=ENCODER_OPS)
