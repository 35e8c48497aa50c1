"""Images that an export compares on, where the user gives none."""

from __future__ import annotations

from pathlib import Path

import pytest

from laco_deploy.parity_data import adversarial, parity_samples
from laco_export.parity.plan import LARGE, ParityPlan


@pytest.mark.parametrize("plan", [ParityPlan(), LARGE])
def test_as_many_images_as_the_plan_asks_for_and_adversarial_ones_of_every_sort(
    tmp_path: Path, plan: ParityPlan
) -> None:
    samples = parity_samples(tmp_path, plan=plan)
    edge_cases = [one.name for one in samples if one.adversarial]
    assert len(samples) == plan.min_images + plan.adversarial
    assert len(set(edge_cases)) == plan.adversarial
    for sort in ("black", "noise", "text", "1,000"):
        assert any(sort in name for name in edge_cases)


def test_more_images_are_as_many_as_asked_for_and_none_is_none(tmp_path: Path) -> None:
    samples = parity_samples(tmp_path, images=70)
    assert len(samples) == 70 + len(adversarial())
    assert parity_samples(tmp_path, images=0) == []
