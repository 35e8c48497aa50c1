"""One random checkpoint and its bundles, exported once for all tests of this folder."""

from __future__ import annotations

import pytest

from laco_deploy.exporting import build_job
from laco_deploy.model.checkpoint import Checkpoint, load_checkpoint
from laco_export.job import ExportJob
from tests.bundles import RandomBundles, random_samples


@pytest.fixture(scope="session")
def checkpoint(bundle_for: RandomBundles) -> Checkpoint:
    return load_checkpoint(bundle_for.checkpoint)


@pytest.fixture(scope="session")
def job(checkpoint: Checkpoint) -> ExportJob:
    return build_job(checkpoint, target="onnxruntime", parity_samples=random_samples())
