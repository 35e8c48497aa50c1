"""The random checkpoint's fp32 graphs, to write layouts from."""

from __future__ import annotations

import pytest

from tests.bundles import RandomBundles
from tests.export.onnxruntime.work import Source, open_source


@pytest.fixture(scope="session")
def source(bundle_for: RandomBundles) -> Source:
    return open_source(bundle_for("onnxruntime"), bundle_for.checkpoint)
