"""Check 10 of the TensorRT path: the order of calls, aliased buffers and CUDA graphs, on a fake."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from laco_runtimes.engines.tensorrt_run import Binding, Execution, LoadedPlan, Replay
from laco_runtimes.errors import EngineError
from laco_runtimes.graphs import GraphSpec, TensorSpec
from tests.runtime.tensorrt.fake_trt import Arrays, FakeDevice, FakePlan, FakeTrt

SPEC = GraphSpec(
    "decoder",
    (TensorSpec("x", "float32", (1, "sequence")), TensorSpec("cache", "float16", (1, 4))),
    (TensorSpec("y", "float32", (1, "sequence")), TensorSpec("new", "float16", (1, 4))),
)


def double(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * 2, "new": inputs["cache"] + 1}


class Rig:
    """One plan on a fake device, with memory for its tensors."""

    def __init__(self, spec: GraphSpec = SPEC, **plan: Any) -> None:
        self.device = FakeDevice()
        self.trt = FakeTrt(self.device)
        self.trt.plans[b"plan"] = FakePlan(SPEC, double, {"new": "cache"}, **plan)
        self.loaded = LoadedPlan(self.trt, self.device, b"plan", spec)  # type: ignore[arg-type]
        self.run = Execution(self.loaded)
        self.buffers = {name: self.device.allocate(64) for name in ("x", "y", "cache")}

    def bindings(self, tokens: int = 3) -> dict[str, Binding]:
        cache = Binding(self.buffers["cache"], (1, 4))
        return {
            "x": Binding(self.buffers["x"], (1, tokens)),
            "y": Binding(self.buffers["y"], (1, tokens)),
            "cache": cache,
            "new": cache,
        }

    def steps(self) -> list[str]:
        return [call[1] for call in self.trt.calls if call[0] == "decoder"]


def test_profile_then_shapes_then_inference_then_addresses_then_the_run() -> None:
    rig = Rig()
    rig.run.bind(rig.bindings())
    rig.run.enqueue()
    assert rig.steps() == ["profile", "shape", "infer", *["address"] * 4, "execute"]
    assert ("decoder", "infer", "[]") in rig.trt.calls


def test_every_tensor_gets_an_address_and_static_ones_no_shape() -> None:
    rig = Rig()
    rig.run.bind(rig.bindings())
    assert {call[2] for call in rig.trt.calls if call[1:2] == ("address",)} == {
        *("x", "y", "cache", "new")
    }
    assert [call[2] for call in rig.trt.calls if call[1:2] == ("shape",)] == ["x"]


def test_binding_the_same_again_does_nothing_and_another_shape_starts_over() -> None:
    rig = Rig()
    rig.run.bind(rig.bindings())
    first = rig.run.bound
    before = len(rig.trt.calls)
    rig.run.bind(rig.bindings())
    assert len(rig.trt.calls) == before
    rig.run.bind(rig.bindings(tokens=5))
    assert rig.run.bound != first
    assert rig.steps()[-6:] == ["shape", "infer", *["address"] * 4]


def test_an_output_in_place_must_lie_where_its_input_lies() -> None:
    rig = Rig()
    elsewhere = rig.bindings() | {"new": Binding(rig.device.allocate(64), (1, 4))}
    with pytest.raises(EngineError, match="new must lie where cache lies"):
        rig.run.bind(elsewhere)
    assert rig.run.bound is None


def test_a_tensor_without_memory_is_named() -> None:
    rig = Rig()
    bindings = rig.bindings()
    del bindings["y"]
    with pytest.raises(EngineError, match="y of decoder has no memory"):
        rig.run.bind(bindings)


def test_a_shape_outside_the_profile_is_named_and_nothing_runs() -> None:
    rig = Rig()
    wrong = rig.bindings() | {"x": Binding(rig.buffers["x"], (2, 3))}
    with pytest.raises(EngineError, match=r"decoder refused x of \(2, 3\)"):
        rig.run.bind(wrong)
    assert "execute" not in rig.steps()


def test_a_profile_that_the_plan_has_not_is_refused() -> None:
    rig = Rig()
    with pytest.raises(EngineError, match="refused profile 1"):
        Execution(rig.loaded, profile=1)


def test_a_plan_that_is_refused_says_on_which_gpu() -> None:
    device = FakeDevice()
    with pytest.raises(EngineError, match="refused on Fake GPU"):
        LoadedPlan(FakeTrt(device), device, b"other", SPEC)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GraphSpec("decoder", SPEC.inputs[:1], SPEC.outputs), "differ in 'cache'"),
        (
            GraphSpec(
                "decoder", (SPEC.inputs[0], TensorSpec("cache", "float32", (1, 4))), SPEC.outputs
            ),
            "cache of decoder is float32 by its declaration and HALF in the plan",
        ),
    ],
)
def test_a_plan_with_other_tensors_is_refused(spec: GraphSpec, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Rig(spec)


class Replayed(Rig):
    """The run, replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.replay = Replay(self.device, self.run.enqueue, self.run.can_be_recorded)

    def go(self, value: float, tokens: int = 3) -> list[float]:
        self.device.upload(np.full((1, tokens), value, np.float32), self.buffers["x"])
        self.run.bind(self.bindings(tokens))
        self.replay.run(self.run.bound)
        found = np.empty((1, tokens), np.float32)
        self.device.download(self.buffers["y"], found)
        return [float(one) for one in found[0]]


def test_the_first_run_is_enqueued_the_second_recorded_and_later_ones_replayed() -> None:
    rig = Replayed()
    answers = [rig.go(value)[0] for value in (1, 2, 3, 4)]
    assert answers == [2, 4, 6, 8]
    assert rig.device.events == ["capture", "launch", "launch", "launch"]
    assert rig.steps().count("execute") == 2  # once enqueued, once recorded


def test_another_shape_is_recorded_anew() -> None:
    rig = Replayed()
    for value in (1, 2, 3):
        rig.go(value)
    assert rig.go(5, tokens=7) == [10] * 7
    assert rig.go(6, tokens=7) == [12] * 7
    assert rig.device.events == ["capture", "launch", "launch", "capture", "launch"]


def test_another_address_is_recorded_anew() -> None:
    rig = Replayed()
    for value in (1, 2):
        rig.go(value)
    rig.buffers["y"] = rig.device.allocate(64)
    assert rig.go(3)[0] == 6
    assert rig.go(4)[0] == 8
    assert rig.device.events == ["capture", "launch", "capture", "launch"]


def test_where_nothing_can_be_recorded_each_run_is_enqueued() -> None:
    rig = Replayed()
    rig.device.refuses_capture = True
    assert [rig.go(value)[0] for value in (1, 2, 3)] == [2, 4, 6]
    assert rig.device.events == []


def test_recording_waits_until_the_product_has_chosen_its_kernels() -> None:
    rig = Replayed()
    rig.trt.capturable = False
    assert [rig.go(value)[0] for value in (1, 2, 3)] == [2, 4, 6]
    rig.trt.capturable = True
    assert rig.go(4)[0] == 8
    assert rig.device.events == ["capture", "launch"]


def test_after_an_error_or_a_cancel_nothing_recorded_is_used() -> None:
    rig = Replayed()
    for value in (1, 2):
        rig.go(value)

    def fail(inputs: Arrays) -> Arrays:
        raise KeyboardInterrupt

    plan = rig.trt.plans[b"plan"]
    plan.compute = fail
    with pytest.raises(KeyboardInterrupt):
        rig.go(3)
    plan.compute = double
    assert [rig.go(value)[0] for value in (4, 5)] == [8, 10]
    assert rig.device.events == ["capture", "launch", "launch", "capture", "launch"]
