"""Copies of real bundles to spoil, and engines that must never see them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from laco_runtimes.bundle import open_bundle
from laco_runtimes.engines import ENGINES
from laco_runtimes.engines.base import LoadedEngine, LoadRequest
from laco_runtimes.errors import BundleError
from laco_runtimes.manifest import MANIFEST_NAME
from laco_runtimes.pipeline import Pipeline
from tests.bundles import RandomBundles
from tests.hostile.sealing import seal_again

Refused = Callable[[Path], str]


@pytest.fixture(params=["onnxruntime", "openvino"])
def whole_bundle(request: pytest.FixtureRequest, bundle_for: RandomBundles, tmp_path: Path) -> Path:
    """A bundle of either target, with all baselines, to spoil."""
    shutil.copytree(bundle_for(request.param), tmp_path / "engine")
    return tmp_path / "engine"


@pytest.fixture(scope="session")
def without_baselines(
    bundle_for: RandomBundles, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The bundle for a target with one encoder; there is less to copy and to hash."""

    @cache
    def make(target: str) -> Path:
        bundle = tmp_path_factory.mktemp("without_baselines") / target
        shutil.copytree(bundle_for(target), bundle, ignore=shutil.ignore_patterns("baseline"))
        data = json.loads((bundle / MANIFEST_NAME).read_text())
        data["variants"] = data["variants"][:1]
        (bundle / MANIFEST_NAME).write_text(json.dumps(data))
        seal_again(bundle)
        open_bundle(bundle)
        return bundle

    return make


@pytest.fixture
def onnx_bundle(without_baselines: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(without_baselines("onnxruntime"), tmp_path / "engine")
    return tmp_path / "engine"


@pytest.fixture
def ir_bundle(without_baselines: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(without_baselines("openvino"), tmp_path / "engine")
    return tmp_path / "engine"


@pytest.fixture
def bundle(onnx_bundle: Path) -> Path:
    """Where the target makes no difference."""
    return onnx_bundle


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Load a bundle, expect that it is refused before an engine sees it, and give the message."""

    def load(request: LoadRequest) -> LoadedEngine:
        raise AssertionError("an engine was given a hostile bundle")

    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(ENGINES, name, replace(ENGINES[name], load=load))

    def check(bundle: Path) -> str:
        with pytest.raises(BundleError) as error:
            Pipeline(bundle)
        return str(error.value)

    return check
