"""The built wheel, in an environment of its own with one engine: what an edge machine gets.

Installing needs the package index that `make` used; PIP_ARGS (see the Makefile) is honoured.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SOURCES = {
    "laco_deploy": ROOT / "laco_deploy",
    "laco_export": ROOT / "export" / "laco_export",
    "laco_runtimes": ROOT / "runtimes" / "laco_runtimes",
}
# What only training, export and reports need.
HEAVY = (
    "accelerate",
    "matplotlib",
    "onnx",
    "onnxscript",
    "plotly",
    "sklearn",
    "torch",
    "transformers",
)
ENGINES = {"onnxruntime", "openvino"}
PIP_ARGS = os.environ.get("PIP_ARGS", "")  # as given to make
PROMPT = "What is in the picture?"
MAX_INSTALL_BYTES = 300 * 2**20
"""Of all that an edge machine gets but Python and pip; MB as `du -m` counts them."""


def run(*command: str | Path, cwd: Path, timeout_s: int = 300) -> str:
    """Standard output of a command that must succeed; its standard error is the failure's text."""
    # OMP_NUM_THREADS, HF_HUB_OFFLINE come from conftest. A PYTHONPATH would let the sources in.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        shown = " ".join(str(part) for part in command)
        pytest.fail(f"{shown}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run(*build, "--outdir", out, ROOT, cwd=out)
    [built] = out.glob("laco_deploy-*.whl")
    return built


@pytest.fixture(
    scope="module",
    params=["onnxruntime", pytest.param("openvino", marks=pytest.mark.full)],
)
def engine(request: pytest.FixtureRequest) -> str:
    """The extra that is installed, which is also the target its bundle was exported for."""
    return str(request.param)


@pytest.fixture(scope="module")
def installed(wheel: Path, engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`bin` folder of a fresh environment that holds the wheel and one engine."""
    home = tmp_path_factory.mktemp(f"only-{engine}")
    venv.create(home, symlinks=True)
    scripts = home / "bin"
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python"]
    options = ["-qq", "--disable-pip-version-check", "--no-compile", *shlex.split(PIP_ARGS)]
    pins = ROOT / "constraints.txt"
    run(*pip, "install", *options, "--constraint", pins, f"{wheel}[{engine}]", cwd=home)
    yield scripts
    shutil.rmtree(home)  # a quarter of a gigabyte, and pytest keeps the last three runs


def test_wheel_holds_the_three_packages_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        Path(package) / path.relative_to(folder)
        for package, folder in SOURCES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != "ruff.toml"
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    # Where optimum-cli looks for commands of other packages.
    sources.add(Path("optimum/commands/register/register_laco.py"))
    assert names == sources
    assert {Path(package) / "py.typed" for package in SOURCES} <= names


def test_wheel_carries_the_licence_and_both_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        scripts = archive.read(info["entry_points.txt"]).decode()
        licence = archive.read(info["LICENSE"])
    assert "laco = laco_deploy.cli:main" in scripts
    assert "laco-export = laco_deploy.cli:export_main" in scripts
    assert licence == (ROOT / "LICENSE").read_bytes()


def test_install_brings_the_engine_asked_for_and_no_training_package(
    installed: Path, engine: str
) -> None:
    names = (*HEAVY, *sorted(ENGINES))
    code = (
        "import importlib.util, json, sys\n"
        "print(json.dumps([n for n in sys.argv[1:] if importlib.util.find_spec(n)]))"
    )
    output = run(installed / "python", "-I", "-c", code, *names, cwd=installed)
    assert json.loads(output) == [engine]


def test_a_plain_install_with_one_engine_is_below_300_mb(installed: Path) -> None:
    [packages] = installed.parent.glob("lib/python*/site-packages")
    files = [path for path in packages.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < MAX_INSTALL_BYTES


def test_doctor_finds_the_engine_that_is_installed_in_order(
    installed: Path, engine: str, tmp_path: Path
) -> None:
    report = json.loads(run(installed / "laco", "doctor", "--json", cwd=tmp_path))
    engines = {one["name"]: one["state"] for one in report["findings"] if one["area"] == "engine"}
    assert engines.pop(f"{engine} on {'CPU' if engine == 'openvino' else 'cpu'}") == "ok"
    assert set(engines.values()) <= {"absent", "ok"}
    assert engines["torch"] == "absent"


def test_pipeline_and_every_runtime_module_import(installed: Path) -> None:
    code = (
        "import importlib, pkgutil\n"
        "import laco_deploy, laco_deploy.cli, laco_runtimes\n"
        "laco_deploy.Pipeline\n"
        "for module in pkgutil.walk_packages(laco_runtimes.__path__, 'laco_runtimes.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(laco_deploy.__file__)"
    )
    output = run(installed / "python", "-I", "-c", code, cwd=installed)
    assert Path(output.strip()).is_relative_to(installed.parent)


@pytest.mark.parametrize("command", ["laco", "laco-export"])
def test_command_prints_its_help(installed: Path, command: str) -> None:
    assert "Usage" in run(installed / command, "--help", cwd=installed)


def test_chat_answers_as_the_source_tree_does(
    installed: Path, engine: str, bundle_for: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = bundle_for(engine)
    image = tmp_path / "picture.png"
    Image.radial_gradient("L").convert("RGB").save(image)

    code = (
        "import sys\n"
        "from laco_deploy import Pipeline\n"
        "bundle, image, prompt = sys.argv[1:]\n"
        "print(Pipeline(bundle).chat(image, prompt))"
    )
    arguments = ("-c", code, bundle, image, PROMPT)
    alone = run(installed / "python", "-I", *arguments, cwd=tmp_path)
    assert alone.strip()
    assert alone == run(sys.executable, *arguments, cwd=ROOT)
