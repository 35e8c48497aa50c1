"""What the card of a trained checkpoint says of its mergers."""

from __future__ import annotations

from typing import Any

import pytest

from laco_deploy.model import LacoForConditionalGeneration
from laco_deploy.training.card import training_card
from tests.model.tower_samples import laco_config

RECORD = {
    "command": "laco train --recipe micro",
    "recipe": {"name": "micro", "steps": 10, "batch_size": 4},
    "seed": 0,
    "minutes": 1.5,
    "versions": {"torch": "2"},
    "test": [{"group": "shapes", "task": "shape_kind", "correct": 3, "total": 4}],
}


@pytest.mark.parametrize(
    ("mergers", "line"),
    [
        ([], "* No merger: 64 visual tokens per image."),
        (
            [{"after_block": 1}],
            "* LaCo merger after block 1, ratio 2: 16 visual tokens per image.",
        ),
        (
            [{"after_block": 2, "kind": "token_packer", "ratio": 4}],
            "* token_packer merger after block 2, ratio 4: 4 visual tokens per image.",
        ),
        (
            [{"after_block": 1}, {"after_block": 3, "kind": "avg_pool"}],
            "* LaCo merger after block 1, ratio 2; avg_pool merger after block 3, ratio 2: "
            "4 visual tokens per image.",
        ),
    ],
)
def test_card_names_every_merger(mergers: list[dict[str, Any]], line: str) -> None:
    model = LacoForConditionalGeneration(laco_config("aimv2_vision_model", mergers))
    card = training_card(RECORD, model)
    assert line in card.splitlines()
    assert "| shapes | 3 | 4 | 75.0% |" in card
