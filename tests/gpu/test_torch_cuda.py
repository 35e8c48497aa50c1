"""A checkpoint on an NVIDIA GPU: the same tokens as on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from laco_runtimes.pipeline import Pipeline
from tests.bundles import PROMPTS, make_random_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]

PICTURE = Image.radial_gradient("L").convert("RGB")


def test_answers_on_the_gpu_are_those_on_the_cpu(tmp_path: Path) -> None:
    checkpoint = make_random_checkpoint(tmp_path / "ckpt")
    pipelines = [Pipeline(checkpoint, device=device) for device in ("auto", "cpu")]
    assert [pipeline.info.device for pipeline in pipelines] == ["cuda:0", "cpu"]
    for prompt in PROMPTS:
        for lookup in (0, 6):
            replies = [
                pipeline.chat(PICTURE, prompt, max_new_tokens=24, prompt_lookup=lookup)
                for pipeline in pipelines
            ]
            assert replies[0].tokens == replies[1].tokens
