"""What only a GPU can show. Every test says why it is skipped elsewhere."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from laco_deploy.exporting import export_checkpoint
from laco_runtimes.engines.tensorrt_device import Device, open_device, why_no_device
from laco_runtimes.errors import LacoError
from laco_runtimes.plan_products import PRODUCTS
from laco_runtimes.plans import CACHE_VARIABLE
from tests.bundles import make_random_checkpoint


@pytest.fixture(scope="session")
def device() -> Device:
    """The GPU, or the reason that there is none."""
    if (reason := why_no_device()) is not None:
        pytest.skip(reason)
    return open_device("auto")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_checkpoint(tmp_path_factory.mktemp("gpu") / "checkpoint")


@pytest.fixture(autouse=True)
def own_plans(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of tests do not go where the user's are."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))


class GpuBundles:
    """Bundles of one checkpoint by target and precision, each exported when first asked for."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self._checkpoint, self._folder = checkpoint, folder
        self._made: dict[tuple[str, str, str | None], Path] = {}

    def __call__(self, target: str, precision: str, flavour: str | None = None) -> Path:
        """The folder; without parity images, as the tests compare by themselves."""
        from laco_export.targets.base import TargetOptions

        package = PRODUCTS[target].package if target in PRODUCTS else target
        try:
            importlib.import_module(package)
        except ImportError:
            pytest.skip(f"{package} is not installed")
        key = target, precision, flavour
        if key not in self._made:
            out = self._folder / "-".join(filter(None, key))
            options = TargetOptions(flavour=flavour)
            try:
                export_checkpoint(
                    self._checkpoint,
                    out,
                    target=target,
                    precision=precision,
                    parity_samples=(),
                    options=options,
                )
            except LacoError as error:
                pytest.fail(f"the export for {target} {precision} failed: {error}")
            self._made[key] = out
        return self._made[key]


@pytest.fixture(scope="session")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> GpuBundles:
    return GpuBundles(checkpoint, tmp_path_factory.mktemp("bundles"))
