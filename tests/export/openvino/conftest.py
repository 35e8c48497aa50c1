"""The shipped tiny model, traced once, and compiled once for every choice of precisions."""

from __future__ import annotations

import pytest

from laco_export.precision import Precisions
from tests.export.openvino.work import (
    Compile,
    Compiled,
    Source,
    compile_bundle,
    open_source,
    write_source,
)
from tests.shared import made_once, run_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(made_once(run_folder(tmp_path_factory) / "openvino-tiny", write_source))


@pytest.fixture(scope="session")
def compiled(tiny: Source, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Makes a bundle in the given precisions, or hands out the one it made before."""
    made: dict[Precisions, Compiled] = {}
    folder = tmp_path_factory.mktemp("openvino")

    def compile_once(precisions: Precisions) -> Compiled:
        if precisions not in made:
            made[precisions] = compile_bundle(tiny, folder / f"{len(made)}", precisions)
        return made[precisions]

    return compile_once
