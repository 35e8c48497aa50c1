"""A small comparison, pretrained once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from laco_deploy.training.compare.pretrain import Workshop, open_workshop, prepare, pretrain
from laco_deploy.training.compare.settings import BUDGETS, Budget
from laco_deploy.training.progress import Progress

MICRO = BUDGETS["micro"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """As in the processes of a comparison."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def budget() -> Budget:
    return replace(MICRO, seeds=(0,), positions=(1, 4))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, budget: Budget) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    prepare(folder, budget, workers=1, progress=Progress())
    pretrain(folder, budget, workers=1, progress=Progress())
    return folder


@pytest.fixture(scope="session")
def workshop(root: Path, budget: Budget) -> Workshop:
    return open_workshop(root, budget)
