"""What a comparison spends, as data: shapes, pretraining, seeds and the two stages of a cell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from laco_deploy.training.parts import Part
from laco_deploy.training.recipes import Recipe

PAPER_TOWER_RATE = 2e-6
PAPER_REST_RATE = 1e-5
"""Of stages 1.5 and 2 (paper section 4.1)."""
TOWER_SHARE = PAPER_TOWER_RATE / PAPER_REST_RATE


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePlan:
    """Peak learning rates of one cell."""

    tower: float
    merger: float
    rest: float
    """Projector and language model."""
    merger_in_stage1: bool = True

    def stage1(self, rate: float) -> dict[Part, float]:
        """Projector and, if it takes part, merger; the rest is frozen (paper figure 3)."""
        rates: dict[Part, float] = {"projector": rate}
        return rates | ({"merger": rate} if self.merger_in_stage1 else {})

    def stage2(self) -> dict[Part, float]:
        """All parameters."""
        return {
            "tower": self.tower,
            "merger": self.merger,
            "projector": self.rest,
            "language_model": self.rest,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Everything that decides what a comparison computes."""

    name: str
    recipe: Recipe
    """Shapes, data, tokenizer and the pretraining; its `after_block` is a quarter of the blocks."""
    pretrain_seed: int = 0
    seeds: tuple[int, ...]
    """Of the fresh merger and of the order of the pictures, in the cells."""
    literal_seeds: tuple[int, ...]
    """Those of them that also run at the paper's own rates."""
    positions: tuple[int, ...]
    """k of the study of the place, in blocks."""
    stage1_steps: int
    stage1_rate: float = 1e-3
    """As the paper's."""
    stage2_steps: int
    rate: float
    """Peak rate of all but the tower in stage 2, a multiple of the paper's 1e-5."""
    warmup_share: float = 0.03
    floor_share: float = 0.01
    """Where the cosine ends: 1e-7 is a hundredth of the paper's 1e-5."""

    @property
    def rate_plans(self) -> Mapping[str, RatePlan]:
        """By name. The paper does not say whether the merger counts as part of the encoder."""
        tower, rest = self.rate * TOWER_SHARE, self.rate
        slow, fast = PAPER_TOWER_RATE, PAPER_REST_RATE
        return {
            "scaled": RatePlan(tower=tower, merger=rest, rest=rest),
            "slow_merger": RatePlan(tower=tower, merger=tower, rest=rest),
            "forgotten_merger": RatePlan(
                tower=tower, merger=tower, rest=rest, merger_in_stage1=False
            ),
            "literal": RatePlan(tower=slow, merger=fast, rest=fast),
            "literal_slow_merger": RatePlan(tower=slow, merger=slow, rest=fast),
        }

    def as_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        values = asdict(self)
        values["rates"] = {name: asdict(plan) for name, plan in self.rate_plans.items()}
        plain: dict[str, Any] = json.loads(json.dumps(values, default=dict))
        return plain

    @property
    def pretraining_digest(self) -> str:
        """Of what decides the pretrained model."""
        return _digest({"recipe": self.as_dict()["recipe"], "seed": self.pretrain_seed})

    @property
    def digest(self) -> str:
        """Of what decides a cell. Seeds and positions may grow later: they are in its name."""
        values = self.as_dict()
        for key in ("name", "seeds", "literal_seeds", "positions"):
            del values[key]
        return _digest(values)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        budget.name: budget
        for budget in (
            Budget(
                name="full",
                recipe=Recipe(
                    name="compare",
                    image_size=84,
                    vision_blocks=12,
                    vision_width=64,
                    vision_heads=2,
                    text_layers=3,
                    text_width=96,
                    text_heads=3,
                    text_kv_heads=1,
                    after_block=3,
                    max_positions=512,
                    counts={"train": 24_000, "val": 600, "test": 2_100},
                    steps=4_000,
                    batch_size=32,
                    learning_rate=1.5e-3,
                    warmup_steps=100,
                ),
                seeds=(0, 1, 2),
                literal_seeds=(0,),
                positions=(1, 2, 3, 6, 12),
                stage1_steps=80,
                stage2_steps=320,
                rate=1e-3,
            ),
            Budget(
                name="micro",
                recipe=Recipe(
                    name="compare-micro",
                    image_size=56,
                    vision_blocks=4,
                    vision_width=32,
                    vision_heads=1,
                    text_layers=1,
                    text_width=32,
                    text_heads=1,
                    text_kv_heads=1,
                    after_block=1,
                    vocab_size=384,
                    max_positions=512,
                    counts={"train": 64, "val": 4, "test": 16},
                    groups=("digits", "shapes"),
                    steps=4,
                    batch_size=8,
                    learning_rate=2e-3,
                    warmup_steps=1,
                ),
                seeds=(0, 1),
                literal_seeds=(0,),
                positions=(1, 2, 4),
                stage1_steps=2,
                stage2_steps=3,
                rate=1e-3,
            ),
        )
    }
)
"""By name: `full` is the one of docs/comparison.md, `micro` takes the same path in a minute."""

__all__ = ["BUDGETS", "PAPER_REST_RATE", "PAPER_TOWER_RATE", "TOWER_SHARE", "Budget", "RatePlan"]
