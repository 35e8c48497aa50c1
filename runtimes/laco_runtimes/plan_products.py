"""TensorRT and TensorRT for RTX: two packages with, but for a few names, one interface."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from laco_runtimes.errors import EngineError, MissingPackageError

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True, slots=True)
class Product:
    """One package that makes plans and runs them."""

    name: str
    """Also the name of the export target and of the engine."""
    package: str
    """Import name, and the extra of laco-deploy with `-` for `_`."""
    title: str
    """In messages."""
    timing_cache: bool
    """Whether tactics are timed on a GPU, so that their times are worth keeping."""
    portable: bool
    """Whether plans can be made for GPUs that are not there (by compute capability)."""

    @property
    def extra(self) -> str:
        """Extra of laco-deploy that brings the package."""
        return self.package.replace("_", "-")


PRODUCTS: dict[str, Product] = {
    "tensorrt": Product("tensorrt", "tensorrt", "TensorRT", timing_cache=True, portable=False),
    # A timing cache would make it look for a GPU, which building does without.
    "tensorrt-rtx": Product(
        "tensorrt-rtx", "tensorrt_rtx", "TensorRT-RTX", timing_cache=False, portable=True
    ),
}
"""Products by the name of the export target."""


class Namespace(Protocol):
    """What is used of either package, as `mypy` sees it (the stubs are in `typings/`)."""

    __version__: str

    @property
    def ILogger(self) -> type[tensorrt.ILogger]: ...  # noqa: D102, N802
    @property
    def IProgressMonitor(self) -> type[tensorrt.IProgressMonitor]: ...  # noqa: D102, N802
    @property
    def Builder(self) -> type[tensorrt.Builder]: ...  # noqa: D102, N802
    @property
    def OnnxParser(self) -> type[tensorrt.OnnxParser]: ...  # noqa: D102, N802
    @property
    def Runtime(self) -> type[tensorrt.Runtime]: ...  # noqa: D102, N802
    @property
    def MemoryPoolType(self) -> type[tensorrt.MemoryPoolType]: ...  # noqa: D102, N802
    @property
    def ProfilingVerbosity(self) -> type[tensorrt.ProfilingVerbosity]: ...  # noqa: D102, N802
    @property
    def TensorIOMode(self) -> type[tensorrt.TensorIOMode]: ...  # noqa: D102, N802
    @property
    def NetworkDefinitionCreationFlag(  # noqa: D102, N802
        self,
    ) -> type[tensorrt.NetworkDefinitionCreationFlag]: ...


def import_product(product: Product) -> Namespace:
    """The package of a product.

    Raises:
        MissingPackageError: it is not installed.
        EngineError: it is installed and does not start, for want of its libraries for example.
    """
    try:
        return cast("Namespace", importlib.import_module(product.package))
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == product.package:
            raise MissingPackageError(product.package, product.extra) from None
        raise EngineError(
            f"{product.package} is installed but does not start: {error}. Install it again."
        ) from error


__all__ = ["PRODUCTS", "Namespace", "Product", "import_product"]
