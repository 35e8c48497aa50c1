"""What `import laco_deploy` offers, and how little it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import laco_deploy
import laco_runtimes.errors
import laco_runtimes.pipeline
import laco_runtimes.reply
import laco_runtimes.video

ROOT = Path(__file__).parents[2]


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    paths = [str(ROOT), str(ROOT / "export"), str(ROOT / "runtimes")]
    show = "import json; print(json.dumps([*sys.modules]))"
    script = f"import sys; sys.path[:0] = {paths!r}\n{code}\n{show}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_the_pipeline_loads_no_engine_and_nothing_to_train_or_export_with() -> None:
    loaded = modules_after("import laco_deploy; laco_deploy.Pipeline")
    assert {"numpy", "PIL", "tokenizers"} <= loaded
    heavy = {"torch", "transformers", "onnx", "openvino", "onnxruntime", "matplotlib", "sklearn"}
    assert loaded.isdisjoint(heavy)


def test_the_bare_import_loads_no_third_party_package() -> None:
    loaded = modules_after("import laco_deploy")
    assert loaded.isdisjoint({"numpy", "PIL", "tokenizers", "pydantic", "laco_runtimes"})


def test_names_are_the_real_ones_and_are_listed() -> None:
    assert laco_deploy.Pipeline is laco_runtimes.pipeline.Pipeline
    assert laco_deploy.Reply is laco_runtimes.reply.Reply
    assert laco_deploy.Video is laco_runtimes.video.Video
    assert laco_deploy.LacoError is laco_runtimes.errors.LacoError
    assert {"Pipeline", "Reply", "LacoError", "Video", "__version__"} <= set(dir(laco_deploy))
    assert laco_deploy.__version__[0].isdigit()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Pipelin'"):
        _ = laco_deploy.Pipelin
