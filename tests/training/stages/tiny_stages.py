"""A tiny checkpoint, tiny data and short stages for the tests of the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from laco_deploy.training.stage import Stage, load_stage
from tests.bundles import PROMPTS

SHORT: dict[str, Any] = {
    "global_batch": 4,
    "micro_batch": 2,
    "precision": "fp32",
    "workers": 0,
    "save_every": 1000,
    "max_new_tokens": 4,
}


def short_stage(name: str = "stage2-si", **overrides: Any) -> Stage:
    """A stage of the paper, with a batch that a test can afford."""
    return load_stage(name, {**SHORT, **overrides})


def write_data(folder: Path, count: int = 16, *, text_only: int = 0, seed: int = 0) -> Path:
    """A LLaVA JSON file with pictures of noise; the last `text_only` samples have none."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    entries = []
    for number in range(count):
        has_image = number < count - text_only
        prompt = PROMPTS[number % len(PROMPTS)]
        entry: dict[str, Any] = {
            "id": f"sample-{number}",
            "conversations": [
                {"from": "human", "value": f"<image>\n{prompt}" if has_image else prompt},
                {"from": "gpt", "value": f"It is {number}" + " system" * (number % 5)},
            ],
        }
        if has_image:
            entry["image"] = f"{number}.png"
            pixels = random.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / entry["image"])
        entries.append(entry)
    path = folder / "data.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path
