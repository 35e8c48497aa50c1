"""What ships to the edge imports nothing heavy, also where the heavy packages are installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("accelerate", "cv2", "datasets", "matplotlib", "onnx", "onnxscript", "optimum", "plotly"),
    *("sklearn", "torch", "transformers"),
)
ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
SNIPPETS = {
    "Pipeline": "import laco_deploy; laco_deploy.Pipeline",
    "cli": "import laco_deploy.cli; laco_deploy.cli.main",
    "chat": "import laco_deploy.cli.commands, laco_runtimes.pipeline",
    "doctor": "import laco_deploy.doctor.examine",
    "laco_runtimes": (
        "import importlib, pkgutil, laco_runtimes\n"
        "for module in pkgutil.walk_packages(laco_runtimes.__path__, 'laco_runtimes.'):\n"
        "    importlib.import_module(module.name)"
    ),
}


@pytest.mark.parametrize("part", SNIPPETS)
def test_import_loads_no_training_package_and_no_engine(part: str) -> None:
    code = (
        f"import sys\nsys.path[:0] = {[str(ROOT / 'export'), str(ROOT / 'runtimes')]!r}\n"
        f"{SNIPPETS[part]}\nimport json; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint({*HEAVY, *ENGINES})
