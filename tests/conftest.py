"""What every test gets: no network, few threads, and a header with the versions under test."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.bundles import RandomBundles

# Before the first test imports torch or an engine: they read these once, when they are loaded.
# The models under test are tiny, so more threads only cost time, and a fixed number repeats better.
# Beside another worker of xdist, one.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"

_SHOWN_PACKAGES = ("numpy", "torch", "transformers", "onnx", "onnxruntime", "openvino", "tensorrt")


class NetworkBlockedError(RuntimeError):
    """A test tried to leave the machine. Not an OSError: libraries catch that and try again."""

    def __init__(self, host: object) -> None:
        super().__init__(f"A test tried to reach {host!r}. Give it a local file or a fake instead.")


def pytest_report_header() -> list[str]:
    """Versions of what is installed, read from the metadata so that nothing heavy is imported."""
    found = []
    for package in _SHOWN_PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return [f"packages: {', '.join(found)}", f"threads: {os.environ['OMP_NUM_THREADS']}"]


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For `pytest -n`: a file stays on one worker, and so do all that share the dearest exports."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            shared = "tiny_engines" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("tiny_engines" if shared else str(item.path)))


def _is_loopback(host: object) -> bool:
    """Whether a host as given to `socket` stays here; None and "" are the wildcard of a server."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        address = ip_address(str(host).partition("%")[0])
    except ValueError:  # a name
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Make any name look-up or connection that is not loopback raise `NetworkBlockedError`."""

    def guarded(call: Any) -> Any:
        def connect(sock: socket.socket, address: Any) -> Any:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
                raise NetworkBlockedError(address[0])
            return call(sock, address)

        return connect

    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_loopback(host):
            raise NetworkBlockedError(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(scope="session")
def bundle_for(tmp_path_factory: pytest.TempPathFactory) -> RandomBundles:
    """Bundles of one random checkpoint by target, each exported when first asked for."""
    from tests.bundles import RandomBundles  # torch only where a test needs it
    from tests.shared import run_folder

    shared = run_folder(tmp_path_factory) / "random-bundles"
    return RandomBundles(tmp_path_factory.mktemp("bundles"), shared)


@pytest.fixture(scope="session")
def tiny_engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped checkpoint on every engine; an export fails unless it answers as PyTorch does."""
    from tests.bundles import export_tiny  # torch only where a test needs it

    return export_tiny(tmp_path_factory.mktemp("tiny"))
