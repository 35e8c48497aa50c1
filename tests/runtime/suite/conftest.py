"""One pipeline per engine for the whole session, on the shipped checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from laco_runtimes.pipeline import Pipeline
from tests.bundles import TINY
from tests.runtime.suite.talk import ENGINES


@pytest.fixture(scope="session")
def pipeline_on(tiny_engines: dict[str, Path]) -> Callable[[str], Pipeline]:
    """A pipeline by the name of its engine, loaded when first asked for."""
    folders = {"torch": TINY, **tiny_engines}
    loaded: dict[str, Pipeline] = {}

    def load(engine: str) -> Pipeline:
        if engine not in loaded:
            loaded[engine] = Pipeline(folders[engine], threads=1)
        return loaded[engine]

    return load


@pytest.fixture(params=ENGINES)
def pipeline(request: pytest.FixtureRequest, pipeline_on: Callable[[str], Pipeline]) -> Pipeline:
    """Each engine in turn, without any past."""
    pipeline = pipeline_on(request.param)
    pipeline.forget()
    assert pipeline.info.engine == request.param
    return pipeline
