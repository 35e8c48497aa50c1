"""One checkpoint and one data set for all tests of the stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles import make_random_checkpoint
from tests.training.stages.tiny_stages import write_data


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights. Tests must not change it."""
    return make_random_checkpoint(tmp_path_factory.mktemp("start") / "checkpoint")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen samples with a picture each."""
    return write_data(tmp_path_factory.mktemp("data"), 16)
