"""transformers.js loads its folder as it is, and answers as PyTorch does.

Needs Node and npm, and installs transformers.js (500 MB) into a temporary folder.
`LACO_NODE_MODULES` names a folder that has it in `node_modules` instead.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from laco_deploy.exporting import export_checkpoint
from laco_deploy.parity_data import parity_samples
from laco_export.precision import Precisions
from laco_runtimes.images import load_image, resize_square
from tests.export.onnxruntime.work import Source, compile_bundle, open_source

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
TINY, IMAGES = ROOT / "samples" / "laco-tiny", ROOT / "samples" / "images"
QUESTIONS = json.loads((IMAGES / "questions.json").read_text())[:3]
TOKENS = 8
SCRIPT = Path(__file__).parent / "transformersjs"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and transformers.js."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for path in SCRIPT.iterdir():
        shutil.copyfile(path, folder / path.name)
    if (given := os.environ.get("LACO_NODE_MODULES")) is not None:
        (folder / "node_modules").symlink_to(Path(given) / "node_modules")
        return folder
    # Without scripts: the binaries for the CPU are in the packages.
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install transformers.js: {done.stderr[-200:]}")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Source:
    out = tmp_path_factory.mktemp("tiny") / "engine"
    export_checkpoint(TINY, out, target="onnxruntime", parity_samples=parity_samples(TINY))
    return open_source(out, TINY)


def ask(node: Path, folder: Path, questions: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    (node / "questions.json").write_text(json.dumps(questions))
    done = subprocess.run(
        ["node", "run.mjs", str(folder), "questions.json"],
        cwd=node,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["answers"]
    return answers


@pytest.mark.parametrize(
    "precisions",
    [Precisions("fp32", "fp32"), Precisions("fp16", "fp16"), Precisions("int8", "int4")],
    ids=str,
)
def test_it_answers_as_pytorch_does(
    tiny: Source, node: Path, tmp_path: Path, precisions: Precisions
) -> None:
    """Images of the encoder's own size, so that nothing is resized, and as they are."""
    compiled = compile_bundle(tiny, tmp_path / "work", precisions, ["transformersjs"])
    questions, expected = [], []
    for question in QUESTIONS:
        original = IMAGES / question["image"]
        side = tiny.manifest.preprocessing.image_size
        squashed = tmp_path / f"{original.stem}.png"
        Image.fromarray(resize_square(load_image(original), side)).save(squashed)
        for image in (squashed, original):
            questions.append({"image": str(image), "prompt": question["prompt"]})
            answer = tiny.expected(original, question["prompt"], TOKENS)
            expected.append((tiny.ids(question["prompt"]), answer))
    answers = ask(node, compiled.root / "transformersjs", questions)
    assert [(one["ids"], one["tokens"]) for one in answers] == expected
