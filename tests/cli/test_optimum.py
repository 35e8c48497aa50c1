"""`optimum-cli export laco` is `laco export`, when optimum is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from laco_runtimes.bundle import open_bundle

ROOT = Path(__file__).parents[2]


def has_optimum() -> bool:
    """Our own file in the namespace makes no installed optimum."""
    return find_spec("optimum") is not None and find_spec("optimum.version") is not None


pytestmark = pytest.mark.skipif(not has_optimum(), reason="optimum is not installed")


def optimum_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As an installed package sees it: our folders are on the path, as an install puts them."""
    paths = [str(ROOT / part) for part in ("", "export", "runtimes")]
    code = (
        f"import sys; sys.path[:0] = {paths!r}\n"
        "from optimum.commands.optimum_cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "export", "laco", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_that_of_laco_export() -> None:
    done = optimum_cli("--help")
    assert done.returncode == 0, done.stderr
    assert "laco export" in done.stdout
    for option in ("--ckpt", "--target", "--out", "--precision"):
        assert option in done.stdout


def test_errors_and_exit_codes_are_those_of_laco_export(tmp_path: Path) -> None:
    done = optimum_cli("--ckpt", tmp_path, "--target", "openvin", "--out", tmp_path / "engine")
    assert done.returncode == 2
    assert "Did you mean 'openvino'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_checkpoint_is_exported(tmp_path: Path) -> None:
    out = tmp_path / "engine"
    done = optimum_cli(
        "--ckpt", ROOT / "samples" / "laco-tiny", "--target", "onnxruntime", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert open_bundle(out).manifest.target == "onnxruntime"
