"""Sweeps over options of the export: what is asked for, what is kept, and what is exported anew."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from laco_deploy.benchmark import sweep as sweep_module
from laco_deploy.benchmark import sweep_export
from laco_deploy.benchmark.sweep import (
    Point,
    SweepJob,
    checkpoint_sha256,
    default_cache,
    parse_axes,
    point_key,
    points_of,
    prepare_sweep,
)
from laco_export.progress import Progress
from laco_runtimes.bundle import seal_bundle
from laco_runtimes.errors import (
    ArgumentError,
    CheckpointError,
    CheckpointNotFoundError,
    ExportError,
)
from laco_runtimes.manifest import MANIFEST_NAME
from tests.benchmark.fakes import make_facts
from tests.runtime.fakes import byte_tokenizer

BLOCKS = 4
GRAPH = helper.make_model(helper.make_graph([], "empty", [], [])).SerializeToString()


class FakeExports:
    """Seals small folders in the place of exports, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, str], tuple[str, ...]]] = []
        self.refused: set[str] = set()
        self.impossible: set[str] = set()
        """Baselines that the model cannot have."""

    def __call__(
        self,
        checkpoint: Path,
        out: Path,
        target: str,
        options: Mapping[str, str],
        baselines: Sequence[str],
        progress: Progress,
    ) -> None:
        progress("a stage", 1, 2)
        self.asked.append((dict(options), tuple(baselines)))
        if options.get("precision") in self.refused:
            raise ExportError(f"{options['precision']} is not for this machine. Leave it out.")
        shutil.rmtree(out, ignore_errors=True)
        tokenizer = byte_tokenizer()
        names = [name for name in ("laco", *baselines) if name not in self.impossible]
        facts = make_facts(tokenizer, [name for name in names if name != "downsampled"])
        if "downsampled" in names:
            plain = facts.variants[0]
            smaller = plain.model_copy(update={"name": "downsampled", "mergers": ()})
            facts = facts.model_copy(update={"variants": (*facts.variants, smaller)})
        for path in (
            facts.embed_tokens,
            facts.decoder,
            *(v.vision_encoder for v in facts.variants),
        ):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(GRAPH)
        tokenizer.save(str(out / "tokenizer.json"))
        seal_bundle(out, facts)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> FakeExports:
    found = FakeExports()
    monkeypatch.setattr(sweep_export, "export_point", found)
    return found


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "ckpt"
    folder.mkdir()
    write_config(folder, [1])
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def write_config(folder: Path, places: list[int]) -> None:
    values: dict[str, Any] = {
        "vision_config": {"num_hidden_layers": BLOCKS},
        "mergers": [{"after_block": place} for place in places],
    }
    (folder / "config.json").write_text(json.dumps(values))


def job(checkpoint: Path, *axes: str, **changes: Any) -> SweepJob:
    settings: dict[str, Any] = {
        "checkpoint": checkpoint,
        "target": "onnxruntime",
        "axes": parse_axes(axes),
        "cache": checkpoint.parent / "cache",
    }
    return SweepJob(**settings | changes)


def test_axes_are_read_as_they_are_written() -> None:
    assert parse_axes(["after_block=1,2, 4", "precision=fp32"]) == {
        "after_block": ("1", "2", "4"),
        "precision": ("fp32",),
    }
    assert parse_axes([]) == {}


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["colour=red"], "sweep over 'colour'.*after_block, precision"),
        (["precision"], "precision=1,2,4"),
        (["precision="], "different values"),
        (["precision=fp32,fp32"], "different values"),
        (["precision=fp32", "precision=int8"], "swept twice"),
        (["after_block=1,two"], "no number"),
        (["after_block=-1"], "no number"),
    ],
)
def test_axes_that_make_no_sense_are_refused(given: list[str], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        parse_axes(given)


def test_points_are_all_combinations_with_baselines_once_per_precision(checkpoint: Path) -> None:
    points = points_of(job(checkpoint, "after_block=1,4", "precision=fp32,int8"))
    assert [point.label for point in points] == [
        "after_block=1 precision=fp32",
        "after_block=1 precision=int8",
        "after_block=4 precision=fp32",
        "after_block=4 precision=int8",
    ]
    assert [bool(point.baselines) for point in points] == [True, True, False, False]


def test_every_point_takes_part_and_has_the_baseline_of_its_precision(
    checkpoint: Path, exports: FakeExports
) -> None:
    seen: list[tuple[str, int, int]] = []
    found = prepare_sweep(
        job(checkpoint, "after_block=1,4", "precision=fp32,int8"),
        lambda *step: seen.append(step),
    )
    assert [entrant.name for entrant in found.entrants] == [
        "after_block=1 precision=fp32",
        "after_block=1 precision=int8",
        "after_block=4 precision=fp32",
        "after_block=4 precision=int8",
        "downsampled precision=fp32",
        "downsampled precision=int8",
        "uncompressed precision=fp32",
        "uncompressed precision=int8",
    ]
    for entrant in found.entrants:
        assert entrant.baseline == f"uncompressed precision={entrant.point['precision']}"
        assert entrant.bundle_name.startswith("after_block=")
    assert {entrant.name: entrant.point for entrant in found.entrants}[
        "after_block=4 precision=int8"
    ] == {"after_block": "4", "precision": "int8"}
    assert found.failed == {}
    assert found.sweep.axes == {"after_block": ("1", "4"), "precision": ("fp32", "int8")}
    assert found.sweep.checkpoint == "ckpt"
    assert seen == [(f"bundle {number} of 4", 1, 2) for number in (1, 2, 3, 4)]


def test_weights_that_stand_elsewhere_are_for_latency_only(
    checkpoint: Path, exports: FakeExports
) -> None:
    found = prepare_sweep(job(checkpoint, "after_block=1,4", baselines=()))
    moved = {entrant.name: entrant.variant.latency_only for entrant in found.entrants}
    assert moved == {"after_block=1": False, "after_block=4": True}


def test_without_axes_it_is_the_checkpoint_as_it_is(checkpoint: Path, exports: FakeExports) -> None:
    found = prepare_sweep(job(checkpoint))
    names = [entrant.name for entrant in found.entrants]
    assert names == ["laco", "downsampled", "uncompressed"]
    assert exports.asked == [({}, ("uncompressed", "downsampled"))]


def test_what_is_in_the_cache_is_not_exported_again(checkpoint: Path, exports: FakeExports) -> None:
    first = prepare_sweep(job(checkpoint, "after_block=1,2"))
    assert len(exports.asked) == 2
    again = prepare_sweep(job(checkpoint, "after_block=1,2,4"))
    assert [options for options, _ in exports.asked[2:]] == [{"after_block": "4"}]
    assert {one.bundle.root for one in first.entrants} <= {
        one.bundle.root for one in again.entrants
    }


def test_a_damaged_bundle_of_the_cache_is_exported_again(
    checkpoint: Path, exports: FakeExports
) -> None:
    [laco, *_] = prepare_sweep(job(checkpoint)).entrants
    (laco.bundle.root / laco.variant.vision_encoder).write_bytes(b"spoilt")
    prepare_sweep(job(checkpoint))
    assert len(exports.asked) == 2


def test_other_weights_or_options_or_versions_have_another_place(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = job(checkpoint)
    point = Point({"precision": "fp32"}, ("uncompressed",))

    def key(of: SweepJob = plain, at: Point = point) -> str:
        return point_key(of, at, checkpoint_sha256(checkpoint))

    keys = [
        key(),
        key(at=Point({"precision": "int8"}, ("uncompressed",))),
        key(at=Point({"precision": "fp32"}, ())),
        key(of=job(checkpoint, target="openvino")),
    ]
    (checkpoint / "notes.txt").write_text("nothing that an export reads")
    assert key() == keys[0]
    (checkpoint / "model.safetensors").write_bytes(b"Weights")
    keys.append(key())
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    assert key() == keys[0]
    monkeypatch.setattr(sweep_module, "_version", lambda package: "onnxruntime 99")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_a_point_that_fails_leaves_the_others(checkpoint: Path, exports: FakeExports) -> None:
    exports.refused = {"int8"}
    found = prepare_sweep(job(checkpoint, "precision=fp32,int8"))
    assert {entrant.bundle_name for entrant in found.entrants} == {"precision=fp32"}
    assert found.failed == {"precision=int8": "int8 is not for this machine. Leave it out."}


def test_where_every_point_fails_the_first_error_is_told(
    checkpoint: Path, exports: FakeExports
) -> None:
    exports.refused = {"fp32", "int8"}
    with pytest.raises(ExportError, match="fp32 is not"):
        prepare_sweep(job(checkpoint, "precision=fp32,int8"))


def test_a_baseline_that_the_model_cannot_have_is_said_also_from_the_cache(
    checkpoint: Path, exports: FakeExports
) -> None:
    exports.impossible = {"downsampled"}
    for _ in range(2):
        found = prepare_sweep(job(checkpoint, "precision=fp32"))
        assert found.failed == {"downsampled precision=fp32": "this model has no such baseline"}
    assert len(exports.asked) == 1


def test_without_an_uncompressed_baseline_nobody_has_one(
    checkpoint: Path, exports: FakeExports
) -> None:
    found = prepare_sweep(job(checkpoint, baselines=("downsampled",)))
    assert {entrant.baseline for entrant in found.entrants} == {None}


@pytest.mark.parametrize(
    ("places", "axes", "word"),
    [
        ([1], "after_block=1,5", "after_block cannot be 5: the encoder has 4 blocks"),
        ([1], "after_block=0", "after_block cannot be 0"),
        ([1, 2], "after_block=1", "the checkpoint has 2"),
        ([], "after_block=1", "the checkpoint has 0"),
    ],
)
def test_a_place_that_the_merger_cannot_take_is_refused_before_any_export(
    checkpoint: Path, exports: FakeExports, places: list[int], axes: str, word: str
) -> None:
    write_config(checkpoint, places)
    with pytest.raises(ArgumentError, match=word):
        prepare_sweep(job(checkpoint, axes))
    assert exports.asked == []


def test_no_target_and_no_checkpoint_are_told(checkpoint: Path, exports: FakeExports) -> None:
    with pytest.raises(ArgumentError, match=r"unknown target 'openvimo'.*openvino"):
        prepare_sweep(job(checkpoint, target="openvimo"))
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json"):
        prepare_sweep(job(checkpoint / "nowhere", "after_block=1"))
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="blocks and mergers"):
        prepare_sweep(job(checkpoint, "after_block=1"))
    assert exports.asked == []


def test_bundles_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "plan_folder", lambda: Path("/cache/laco-deploy/plans"))
    assert default_cache() == Path("/cache/laco-deploy/bench")


def test_finding_bundles_and_their_limits_takes_no_pytorch() -> None:
    code = (
        "import sys\n"
        "import laco_deploy.benchmark.sweep, laco_deploy.benchmark.limits\n"
        "import laco_deploy.benchmark.rates, laco_deploy.benchmark.fit\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_manifest_is_what_makes_a_folder_a_bundle(checkpoint: Path, exports: FakeExports) -> None:
    [laco, *_] = prepare_sweep(job(checkpoint)).entrants
    (laco.bundle.root / MANIFEST_NAME).unlink()
    prepare_sweep(job(checkpoint))
    assert len(exports.asked) == 2
