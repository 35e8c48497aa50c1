"""A model of full size, with random weights, through `laco export`; a program of its own each time.

pytest -m full -s tests/export/test_full_size.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from laco_export.parity.plan import LARGE
from laco_runtimes.bundle import open_bundle

pytestmark = pytest.mark.full

ENCODERS = {"aimv2-large-448": 6, "siglip-so400m-384": 6, "internvit-300m-448": 6}
"""Published encoders, and the block that LaCo stands behind."""

MOST_BYTES = 10_000_000_000
"""Of memory, in the process of a stage, and in the two that run at the same time."""


def laco(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from laco_deploy.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_model_of_full_size_is_exported_in_8_bits_within_its_memory(
    tmp_path: Path, encoder: str
) -> None:
    checkpoint, engine = tmp_path / "checkpoint", tmp_path / "engine"
    try:
        laco(
            *("init", "--vision", encoder, "--llm", "qwen2.5-0.5b", "--merger", "laco"),
            *("--after-block", str(ENCODERS[encoder]), "--ratio", "2", "--random-weights"),
            *("--out", checkpoint),
        )
        begin = time.monotonic()
        told = json.loads(
            laco(
                *("export", "--ckpt", checkpoint, "--target", "openvino", "--precision", "int8"),
                *("--out", engine, "--json"),
            )
        )
        wall = time.monotonic() - begin  # from the command to the end, imports and all
        manifest = open_bundle(engine).manifest
        assert manifest.parity is not None
        assert manifest.parity.images == LARGE.min_images + LARGE.adversarial
        # Every stage ran in a process of its own, and none took more than it may.
        peak = told["peak_bytes"]
        assert {"graphs", "calibration", "reference", "noise", "parity"} <= peak.keys()
        assert max(peak.values()) <= MOST_BYTES
        # Nor all that may run at once; what both processes map of one file counts twice here.
        for one, *others in (
            ("graphs", "language graphs"),
            ("compile decoder", "compile embed_tokens", "compile vision_encoder", "noise"),
        ):
            assert peak[one] + max(peak[other] for other in others) <= MOST_BYTES
        seconds = {name: round(value) for name, value in told["seconds"].items()}
        peaks = {name: f"{value / 1e9:.1f} GB" for name, value in told["peak_bytes"].items()}
        print(f"\n{encoder}: {wall:.0f} s from command to end, {seconds}, {peaks}")
        for check in manifest.parity.checks:
            print(f"  {check.stage} {check.measure} {check.found:.6g} {check.limit}")
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)  # gigabytes
