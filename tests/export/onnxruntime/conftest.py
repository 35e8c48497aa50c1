"""The random checkpoint's fp32 graphs, and what is compiled from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from laco_export.precision import Precisions
from tests.bundles import RandomBundles
from tests.export.onnxruntime.work import Compiled, Source, compile_bundle, open_source


@pytest.fixture(scope="session")
def source(bundle_for: RandomBundles) -> Source:
    return open_source(bundle_for("onnxruntime"), bundle_for.checkpoint)


@pytest.fixture(scope="session")
def plain(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root: Path = tmp_path_factory.mktemp("plain") / "work"
    return compile_bundle(source, root, Precisions("fp32", "fp32"))
