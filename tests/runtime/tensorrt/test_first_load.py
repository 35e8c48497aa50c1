"""After the first load the plans are held against the answers in the bundle, once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from laco_runtimes import selftest
from laco_runtimes.engines import tensorrt
from laco_runtimes.engines.base import LoadRequest
from laco_runtimes.errors import EngineError
from laco_runtimes.manifest import BundleFacts
from laco_runtimes.plan_builder import BuiltPlan
from laco_runtimes.plan_products import PRODUCTS
from laco_runtimes.plans import PlanCache
from tests.runtime.tensorrt.fake_trt import FakeDevice, FakeTrt
from tests.runtime.tensorrt.test_plans import facts as plan_facts


@dataclass
class Answers:
    """Stands in for the comparison, and counts how often it is asked for."""

    passed: bool = True
    stored: bool = True
    asked: int = 0

    def has(self, root: Path) -> bool:
        return self.stored

    def run(self, engine: object, root: Path, facts: BundleFacts) -> Any:
        self.asked += 1
        return SimpleNamespace(passed=self.passed)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(selftest, "has_selftest", made.has)
    monkeypatch.setattr(selftest, "run_selftest", made.run)
    return made


class Loads:
    """Loads two plans from one cache, as often as wanted."""

    def __init__(self, folder: Path, facts: BundleFacts) -> None:
        self.cache = PlanCache(folder / "plans")
        self.request = LoadRequest(folder, facts, facts.variants[0], "auto")
        self.built = 0

    def __call__(self) -> None:
        device = FakeDevice()
        maker = tensorrt._PlanMaker(
            device,
            FakeTrt(device),  # type: ignore[arg-type]
            PRODUCTS["tensorrt-rtx"],
            self.cache,
            self.request,
        )
        for module in ("vision_encoder", "decoder"):
            wanted = plan_facts(module=module)
            maker.made.append((wanted, self.cache.get(wanted, self._build)))
        maker.check_answers(SimpleNamespace(device="cuda:0 (Fake GPU)"))  # type: ignore[arg-type]

    def _build(self) -> BuiltPlan:
        self.built += 1
        return BuiltPlan(b"plan", 1.0, None, None, None, ())


@pytest.fixture
def loads(tmp_path: Path, facts: BundleFacts) -> Loads:
    return Loads(tmp_path, facts)


def test_new_plans_are_compared_once(loads: Loads, answers: Answers) -> None:
    for _ in range(3):
        loads()
    assert (loads.built, answers.asked) == (2, 1)


def test_wrong_answers_are_an_error_and_the_plans_are_built_again(
    loads: Loads, answers: Answers
) -> None:
    answers.passed = False
    with pytest.raises(EngineError, match=r"cuda:0 \(Fake GPU\) the model does not answer as"):
        loads()
    assert not list(loads.cache.folder.iterdir())
    answers.passed = True
    loads()
    assert (loads.built, answers.asked) == (4, 2)


def test_without_stored_answers_plans_stay_unverified(loads: Loads, answers: Answers) -> None:
    answers.stored = False
    loads()
    answers.stored = True
    loads()
    assert (loads.built, answers.asked) == (2, 1)


def test_a_baseline_is_not_compared(loads: Loads, answers: Answers, facts: BundleFacts) -> None:
    loads.request = replace(loads.request, variant=facts.variants[1])
    loads()
    assert answers.asked == 0
