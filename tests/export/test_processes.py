"""Stages in processes of their own: memory comes back, errors and progress come home."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from laco_export.exporter import export_bundle
from laco_export.job import ExportJob, ModelSize
from laco_export.memory import available_bytes, forecast, peak_bytes, readable
from laco_export.processes import StageRunner
from laco_export.progress import Watch
from laco_export.prune import prune_sources
from laco_runtimes.errors import ExportError, LacoError, MissingPackageError, ParityError
from laco_runtimes.manifest import EngineFacts, Variant
from tests.bundles import RandomBundles
from tests.export import stage_samples


@pytest.fixture
def told() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture
def apart(told: list[tuple[str, int, int]]) -> StageRunner:
    return StageRunner(Watch(lambda *step: told.append(step), 2), apart=True)


def test_a_stage_apart_reports_home_and_takes_its_memory_with_it(
    apart: StageRunner, told: list[tuple[str, int, int]]
) -> None:
    process = apart.run("memory", stage_samples.grow, 300)
    assert process not in {0, os.getpid()}
    assert told == [("grow", 0, 2), ("grow", 1, 2), ("grow", 2, 2)]
    assert list(apart.watch.seconds) == ["grow"]
    if sys.platform != "win32":
        assert 300_000_000 < apart.watch.peak_bytes["memory"] < 700_000_000


FORKED = """
import sys
from pathlib import Path
from laco_export.processes import StageRunner, prepare
from laco_export.progress import Watch
from laco_runtimes.errors import ParityError
from tests.export import stage_samples
prepared = sys.argv[1] == "prepared"
if prepared:
    prepare(["wave", "no.such.module"])
told = []
runner = StageRunner(Watch(lambda *step: told.append(step), 2), apart=True)
assert runner.run("imported", stage_samples.imported, "wave") == prepared
try:
    runner.run("work", stage_samples.miss)
except ParityError:
    pass
runner.run("memory", stage_samples.grow, 1)
assert told[-1] == ("grow", 2, 2)
runner.run("wait", stage_samples.wait, Path(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
@pytest.mark.parametrize("how", ["prepared", "not"])
def test_a_stage_is_forked_from_what_is_prepared_and_ends_with_who_asked(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "process"
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", FORKED, how, str(path)], cwd=root) as asking:
        try:
            until(lambda: path.exists() or asking.poll() is not None)
            assert path.exists(), "the process ended before its last stage"
            process = int(path.read_text())
            assert runs(process)
        finally:
            asking.kill()
    until(lambda: not runs(process))


def runs(process: int) -> bool:
    """Nobody may have asked how it ended."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z"


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_stages_behind_the_first_do_without_torch() -> None:
    """In a process of its own each would import it anew, for longer than some of them take."""
    imports = "import sys, laco_export.stages, laco_deploy.module_source"
    found = "print(*{'torch', 'transformers'}.intersection(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; {found}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.skipif(sys.platform == "win32", reason="processes begin too slowly to meet")
def test_two_stages_run_at_once_where_they_may(apart: StageRunner, tmp_path: Path) -> None:
    """Each waits for the other."""
    beside = replace(apart, beside=True)
    names = beside.together(
        partial(beside.run, "one", stage_samples.meet, tmp_path, "a", "b"),
        partial(beside.run, "two", stage_samples.meet, tmp_path, "b", "a"),
    )
    assert names == ("a", "b")
    assert set(apart.watch.peak_bytes) == {"one", "two"}
    assert apart.watch.done == 2


@pytest.mark.parametrize("first", [True, False])
def test_what_fails_beside_another_stage_ends_that_as_well(
    apart: StageRunner, tmp_path: Path, first: bool
) -> None:
    beside = replace(apart, beside=True)
    pair = (
        partial(beside.run, "work", stage_samples.miss),
        partial(beside.run, "never", stage_samples.meet, tmp_path, "a", "nobody"),
    )
    with pytest.raises(ParityError, match="the engine misses"):
        beside.together(*(pair if first else pair[::-1]))


def test_stages_that_may_not_run_at_once_run_in_turn(apart: StageRunner) -> None:
    order: list[str] = []
    apart.together(lambda: order.append("one"), lambda: order.append("two"))
    assert order == ["one", "two"]


def test_a_stage_at_home_runs_in_this_process(told: list[tuple[str, int, int]]) -> None:
    runner = StageRunner(Watch(lambda *step: told.append(step), 2), apart=False)
    assert runner.run("memory", stage_samples.grow, 1) == os.getpid()
    assert told[-1] == ("grow", 2, 2)


@pytest.mark.parametrize(
    ("stage", "kind", "message"),
    [
        (stage_samples.miss, ParityError, "the engine misses"),
        (stage_samples.lack, MissingPackageError, r"pip install 'laco-deploy\[openvino\]'"),
        (stage_samples.break_down, ZeroDivisionError, "a defect"),
        (stage_samples.die, ExportError, "'work' was ended from outside.*want of memory"),
    ],
)
def test_errors_of_a_stage_apart_come_home_as_they_are(
    apart: StageRunner, stage: Callable[..., None], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        apart.run("work", stage)
    assert type(caught.value) is kind
    if isinstance(caught.value, LacoError):
        assert caught.value.exit_code == kind.exit_code  # type: ignore[attr-defined]


def test_more_weights_take_more_memory_and_stages_apart_less_than_all_at_once(
    job: ExportJob,
) -> None:
    full = replace(job, size=ModelSize(310_000_000, 136_000_000, 494_000_000))
    expected = forecast(full)
    assert expected.peak > 4 * full.size.total > forecast(job).peak
    assert expected.peak < 3 * 4 * full.size.total
    assert readable(expected.peak) in str(expected)
    both = forecast(full, beside=True)
    assert all(both.stages[name] >= bytes_ for name, bytes_ in expected.stages.items())
    assert both.stages["compile"] > expected.stages["compile"]
    # AIMv2-Large and SigLIP-SO400M took this much.
    measured = {310_000_000: 4.2e9, 428_000_000: 4.5e9}
    for weights, peak in measured.items():
        size = ModelSize(weights, 136_000_000, 494_000_000)
        foretold = forecast(replace(job, size=size), calibrated=True).peak
        assert peak < foretold < 1.3 * peak


def test_memory_is_read_from_the_system() -> None:
    assert peak_bytes() > 10_000_000
    available = available_bytes()
    assert available is None or available > 10_000_000


def save_graph(path: Path, weights: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    info = helper.make_tensor_value_info
    constant = numpy_helper.from_array(np.ones(8, np.float32), "w")
    graph = helper.make_graph(
        [node],
        "g",
        [info("x", TensorProto.FLOAT, [8])],
        [info("y", TensorProto.FLOAT, [8])],
        [constant],
    )
    model = helper.make_model(graph)
    convert_model_to_external_data(model, location=weights, size_threshold=0)
    onnx.save(model, path)


def test_pruning_leaves_what_graphs_refer_to_and_what_targets_wrote(
    tmp_path: Path, job: ExportJob
) -> None:
    for name in ("vision_encoder", "embed_tokens", "decoder"):
        save_graph(tmp_path / "onnx" / f"{name}.onnx", f"{name}.onnx.data")
    save_graph(tmp_path / "onnx" / "decoder_contrib.onnx", "other.data")
    (tmp_path / "onnx" / "other.data").replace(tmp_path / "onnx" / "decoder.onnx.data")
    save_graph(tmp_path / "onnx" / "decoder_contrib.onnx", "decoder.onnx.data")
    save_graph(
        tmp_path / "baseline" / "external" / "vision_encoder.onnx", "vision_encoder.onnx.data"
    )
    for name in ("openvino/vision_encoder.xml", "genai/onnx/decoder.onnx", "tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    facts = EngineFacts(
        target="onnxruntime",
        precision=dict.fromkeys(("vision_encoder", "embed_tokens", "decoder"), "fp32"),
        language=job.language,
        vision=job.vision,
        embed_tokens="onnx/embed_tokens.onnx",
        decoder="onnx/decoder_contrib.onnx",
    )
    variant = Variant(
        name="laco",
        mergers=(),
        merged_grid=(2, 2),
        vision_encoder="openvino/vision_encoder.xml",
        latency_only=False,
    )
    prune_sources(tmp_path, facts, (variant,))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        *("onnx/embed_tokens.onnx", "onnx/embed_tokens.onnx.data"),
        *("onnx/decoder_contrib.onnx", "onnx/decoder.onnx.data"),
        *("openvino/vision_encoder.xml", "genai/onnx/decoder.onnx", "tokenizer.json"),
    }
    assert not (tmp_path / "baseline").exists()


@pytest.mark.full
def test_a_bundle_made_apart_is_the_bundle_made_at_home(
    bundle_for: RandomBundles, tmp_path: Path
) -> None:
    from laco_deploy.exporting import build_job
    from laco_deploy.model.checkpoint import open_checkpoint
    from tests.bundles import PLAN, random_samples

    samples = random_samples()
    light = build_job(
        open_checkpoint(bundle_for.checkpoint),
        target="onnxruntime",
        parity_samples=samples,
        plan=PLAN,
    )
    home = export_bundle(replace(light, apart=False), tmp_path / "home")
    away = export_bundle(replace(light, apart=True), tmp_path / "away")
    assert away.manifest.parity == home.manifest.parity
    assert [f for f in away.manifest.files if f.path != "README.md"] == [
        f for f in home.manifest.files if f.path != "README.md"
    ]
    assert set(away.peak_bytes) >= {"graphs", "reference", "compile decoder", "parity"}
